"""`ResidualFlow`: contractions, and an inverse that converges or raises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import InvertibleSequential, ResidualFlow
from invtorch.testing import (
    assert_gradients_match,
    assert_invertible,
    assert_log_det,
    assert_right_or_raises,
)
from tests.parts import CONVOLUTIONS
from tests.tolerances import assert_equal, relative_error

seeds = st.integers(0, 2**31)


@st.composite
def networks(draw: st.DrawFn):
    """Draw a network of large weights, and an input for it."""
    torch.manual_seed(draw(seeds))
    dims, channels = draw(st.integers(0, 2)), 4
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        options = {}
        if dims:
            size = draw(st.sampled_from([1, 3]))
            options = {"kernel_size": size, "padding": size // 2}
            options["groups"] = draw(st.sampled_from([1, 2]))
        layers.append(CONVOLUTIONS[dims](channels, channels, **options))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.ELU()])))
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(draw(st.sampled_from([0.1, 1.0, 20.0])))
    return network, torch.randn(2, channels, *(4,) * dims, dtype=torch.float64)


@given(networks(), st.sampled_from([0.3, 0.9]))
def test_the_network_is_a_contraction_and_the_layer_inverts(drawn, coefficient) -> None:
    network, x = drawn
    layer = ResidualFlow(network, coefficient=coefficient)
    J = torch.autograd.functional.jacobian(lambda t: network(t[None])[0], x[0])
    count = x[0].numel()
    assert torch.linalg.matrix_norm(J.view(count, count), 2) <= coefficient + 1e-12
    assert_invertible(layer, x)
    assert_log_det(layer, x)


@given(networks())
def test_gradients(drawn) -> None:
    network, x = drawn
    layer = ResidualFlow(network, coefficient=0.3)
    assert_gradients_match(layer, x, second_order=False)
    layer.memory = None
    assert_gradients_match(layer, x, second_order=False)
    assert_right_or_raises(layer, x)


def test_it_is_not_inverted_by_default() -> None:
    calls = []
    layers = [ResidualFlow(nn.Linear(4, 4)) for _ in range(3)]
    for layer in layers:
        layer.residual.register_forward_hook(lambda *_: calls.append(1))
    net = InvertibleSequential(*layers, anchors=0)
    net(torch.randn(2, 4)).sum().backward()
    assert len(calls) == 6
    assert layers[0].memory == "checkpoint"


def test_an_inverse_that_does_not_converge_raises() -> None:
    expanding = nn.Linear(4, 4)
    with torch.no_grad():
        expanding.weight.copy_(-3 * torch.eye(4))
    layer = ResidualFlow(expanding, coefficient=None)
    with pytest.raises(RuntimeError, match=r"ResidualFlow is off by .* after 1000"):
        layer.inverse(torch.randn(2, 4))
    slow = ResidualFlow(nn.Linear(4, 4), iterations=1)
    with pytest.raises(RuntimeError, match="after 1 iterations, but the tolerance is"):
        slow.inverse(torch.randn(2, 4))


def test_tolerance_and_precision() -> None:
    layer = ResidualFlow(nn.Linear(4, 4), tolerance=1e-2)
    x = torch.randn(8, 4)
    exact = ResidualFlow(nn.Linear(4, 4))
    exact.load_state_dict(layer.state_dict())
    assert 1e-6 < relative_error(layer.inverse(layer(x)), x) < 0.1
    assert relative_error(exact.inverse(exact(x)), x) < 1e-5
    assert layer.inverse(x[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ResidualFlow(torch.tanh), TypeError, "residual is of type builtin"),
        (lambda: ResidualFlow(nn.GELU()), TypeError, "residual has a GELU, whose Lip"),
        (
            lambda: ResidualFlow(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(2.0))),
            TypeError,
            "residual has a LeakyReLU, whose Lipschitz",
        ),
        (
            lambda: ResidualFlow(nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect")),
            TypeError,
            "padding_mode='reflect', which may expand",
        ),
        (
            lambda: ResidualFlow(nn.Linear(2, 2), coefficient=1.0),
            ValueError,
            "coefficient is 1.0, but must be between 0 and 1",
        ),
        (
            lambda: ResidualFlow(nn.Linear(2, 2), tolerance=0.0),
            ValueError,
            "tolerance is 0.0, but must be larger than 0",
        ),
        (
            lambda: ResidualFlow(nn.Linear(2, 2), iterations=0),
            ValueError,
            "iterations is 0, but must be at least 1",
        ),
    ],
)
def test_arguments_that_cannot_be(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_preimage_may_be_zero() -> None:
    layer = ResidualFlow(nn.Linear(4, 4))
    zero = torch.zeros(2, 4)
    assert layer.inverse(layer(zero)).abs().max() < 1e-5


def test_a_network_of_another_shape() -> None:
    layer = ResidualFlow(nn.Linear(4, 3))
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match="the residual Linear returned shape"):
            call(torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_residual_is_evaluated_in_the_precision_of_its_parameters(dtype) -> None:
    layer = ResidualFlow(nn.Linear(4, 4), coefficient=0.5)
    x = torch.randn(2, 4, dtype=dtype)
    y, log_det = layer.forward_and_log_det(x)
    assert y.dtype == log_det.dtype == dtype
    expected, expected_log_det = layer.forward_and_log_det(x.float())
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(log_det.float(), expected_log_det, atol=0.05, rtol=0.05)
    torch.testing.assert_close(layer.inverse(y), x, atol=0.1, rtol=0.1)


def test_a_slope_of_minus_five_is_no_contraction() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ELU(alpha=-5.0))
    with pytest.raises(TypeError, match="residual has a ELU, whose Lipschitz"):
        ResidualFlow(network)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@given(st.integers(1, 4), seeds, st.booleans())
def test_the_log_determinant_is_that_of_the_same_draw(size, seed, transformed) -> None:
    calls = []

    class Dropping(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return nn.functional.dropout(super().forward(x)) / 8

    torch.manual_seed(seed)
    layer = ResidualFlow(Dropping(size, size), coefficient=None).double()
    x = torch.randn(1, size, dtype=torch.float64)

    def drawn(call):
        torch.manual_seed(seed)
        return call(x)

    def with_log_det(x):
        return layer.forward_and_log_det(x)

    if transformed:
        y, log_det = drawn(lambda x: torch.func.jvp(with_log_det, (x,), (x,))[0])
    else:
        y, log_det = drawn(with_log_det)
    assert len(calls) == 1
    assert_equal(y, drawn(layer))
    J = drawn(lambda x: torch.autograd.functional.jacobian(layer, x))
    expected = torch.linalg.slogdet(J.view(size, size)).logabsdet
    assert_equal(log_det[0], expected, least=1.0)
