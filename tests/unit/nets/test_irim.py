"""The i-RIM of any inverse problem: its steps, its gradient update, its errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.nets import IRIM
from invtorch.nets.irim import GradientUpdate
from tests.tolerances import assert_all_equal, assert_equal


def blur(image, kernel):
    return functional.conv2d(image, kernel, padding=1, groups=2)


def deblurring(estimate, blurred, kernel):
    """Return the gradient of half the squared distance of the blurred estimate."""
    residual = blur(estimate, kernel) - blurred
    return functional.conv_transpose2d(residual, kernel, padding=1, groups=2)


def small(steps: int = 3, **options) -> IRIM:
    networks = [
        InvertibleSequential(
            *[
                OrthogonalCoupling(
                    GatedResidualBlock(3, 3, hidden=4, stride=s), channels=6
                )
                for s in (1, 2)
            ]
        )
        for _ in range(steps)
    ]
    return IRIM(networks, deblurring, **options).double()


def problem(channels: int = 6):
    state = torch.randn(2, channels, 7, 8, dtype=torch.float64)
    kernel = torch.rand(2, 1, 3, 3, dtype=torch.float64) / 9
    return state, blur(torch.randn(2, 2, 7, 8, dtype=torch.float64), kernel), kernel


@pytest.mark.parametrize("final_update", [False, True])
@pytest.mark.parametrize("anchors", [0, 3])
def test_the_inverse_is_right_with_different_weights_per_step(
    anchors, final_update
) -> None:
    irim = small(anchors=anchors, final_update=final_update)
    state, *data = problem()
    assert_equal(irim.inverse(irim(state, *data), *data), state)
    assert_equal(irim(irim.inverse(state, *data), *data), state)


@pytest.mark.parametrize("anchors", [0, 3])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_equal_plain_autograd(anchors, direction) -> None:
    irim, inputs = small(anchors=anchors), problem()
    inputs = [t.requires_grad_() for t in inputs]

    def gradients(memory):
        irim.steps.memory = memory
        out = getattr(irim, direction)(*inputs)
        return torch.autograd.grad(out.sin().sum(), [*inputs, *irim.parameters()])

    assert_all_equal(gradients("invert"), gradients("store"))


def test_a_step_is_a_gradient_update_and_a_network() -> None:
    irim, (state, *data) = small(steps=1), problem()
    estimate, memory, rest = state.split(2, dim=1)
    memory = memory + deblurring(estimate, *data)
    network = irim.steps[1].module
    expected = network(torch.cat([estimate, memory, rest], dim=1))
    assert torch.equal(irim(state, *data), expected)


def test_the_final_update_leaves_the_estimate_alone() -> None:
    irim, (state, *data) = small(final_update=True), problem()
    plain = small()
    plain.load_state_dict(irim.state_dict())
    out, before = irim(state, *data), plain(state, *data)
    estimate = before[:, :2]
    assert torch.equal(out[:, :2], estimate)
    assert_equal(out[:, 2:4], before[:, 2:4] + deblurring(estimate, *data))
    assert torch.equal(out[:, 4:], before[:, 4:])


def test_the_gradient_is_evaluated_once_more_in_backward() -> None:
    calls = []

    def gradient(estimate, measured):
        calls.append(1)
        return estimate - measured

    networks = [OrthogonalCoupling(nn.Conv1d(4, 4, 1), channels=8) for _ in range(5)]
    irim = IRIM(networks, gradient, anchors=0)
    state = torch.randn(1, 8, 6, requires_grad=True)
    loss = irim(state, torch.randn(1, 2, 6)).sum()
    assert len(calls) == 5
    loss.backward()
    assert len(calls) == 10


def test_the_update_writes_the_gradient_into_the_memory() -> None:
    update = GradientUpdate(lambda estimate, d: estimate - d, 2)
    state = torch.randn(1, 7, 3)
    out = update(state, torch.ones(1, 2, 3))
    assert torch.equal(out[:, :2], state[:, :2])
    assert torch.equal(out[:, 2:4], state[:, 2:4] + (state[:, :2] - 1))
    assert torch.equal(out[:, 4:], state[:, 4:])
    _, log_det = update.forward_and_log_det(state, torch.ones(1, 2, 3))
    assert log_det.tolist() == [0.0]


def test_the_log_determinant_is_zero() -> None:
    irim, (state, *data) = small(), problem()
    out, log_det = irim.forward_and_log_det(state, *data)
    assert_equal(out, irim(state, *data))
    back, other = irim.inverse_and_log_det(out, *data)
    assert_equal(back, state)
    assert log_det.tolist() == other.tolist() == [0.0, 0.0]


def test_the_names_of_the_parameters_do_not_change() -> None:
    network = OrthogonalCoupling(nn.Conv1d(2, 2, 1), channels=4)
    irim = IRIM([network, network], nn.Linear(2, 2), final_update=True)
    assert [*irim.state_dict()] == [
        "steps.0.gradient.weight",
        "steps.0.gradient.bias",
        "steps.1.module.vectors",
        "steps.1.module.conditioner.weight",
        "steps.1.module.conditioner.bias",
        "steps.2.gradient.weight",
        "steps.2.gradient.bias",
        "steps.3.module.vectors",
        "steps.3.module.conditioner.weight",
        "steps.3.module.conditioner.bias",
        "steps.4.gradient.weight",
        "steps.4.gradient.bias",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IRIM([], None), "step_networks is empty"),
        (
            lambda: GradientUpdate(min, 2)(torch.ones(1, 3, 4)),
            "the state has 3 channels",
        ),
        (
            lambda: GradientUpdate(lambda x: x.sum(1, keepdim=True), 2)(
                torch.ones(2, 8, 4)
            ),
            r"the gradient has shape \(2, 1, 4\), but the estimate \(2, 2, 4\)",
        ),
    ],
)
def test_impossible_arguments(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
