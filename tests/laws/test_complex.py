"""Complex states obey the laws of real ones: inversion and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad

from invtorch import AffineCoupling, Householder1x1, InvertibleSequential
from invtorch.linalg import householder_product
from tests.registry import MAKERS, REAL_ONLY, fitted
from tests.stacks import alternating
from tests.strategies import (
    Example,
    anchors,
    assert_as_plain,
    directions,
    memories,
    weighed,
)
from tests.tolerances import assert_all_equal, assert_equal

pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
names = st.sampled_from(sorted(set(MAKERS) - REAL_ONLY))
seeds = st.integers(0, 2**31)
NETS = {"Glow", "InvertibleUNet", "InvertibleUNet(resampling=haar)"}  # deep themselves


def complex_stack(name: str, depth: int, real_basis: bool) -> InvertibleSequential:
    """Return layers of one kind that are complex, with a unitary or a real basis."""
    net = alternating([MAKERS[name](3, 1) for _ in range(depth)]).to(torch.complex128)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    for module in net.modules():
        if real_basis and hasattr(module, "vectors"):
            module.vectors = nn.Parameter(module.vectors.detach().real.clone())
    return net


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, requires_grad=True)


def real(y: torch.Tensor) -> torch.Tensor:
    return weighed(torch.view_as_real(y))


@given(names, st.booleans(), directions, seeds)
def test_the_inverse_undoes_the_module(name, real_basis, direction, seed) -> None:
    torch.manual_seed(seed)
    net, x, context = (
        complex_stack(name, 2, real_basis),
        values(2, 3, *fitted(name, 5)),
        values(2, 1, *fitted(name, 5)),
    )
    there, back = (net, net.inverse) if direction == "forward" else (net.inverse, net)
    assert_equal(back(there(x, context), context), x)


@given(names, st.booleans(), anchors, memories, directions, seeds)
def test_gradients(name, real_basis, anchors, memory, direction, seed) -> None:
    torch.manual_seed(seed)
    net, x, context = (
        complex_stack(name, 1 if name in NETS else 6, real_basis),
        values(2, 3, *fitted(name, 5)),
        values(2, 1, *fitted(name, 5)),
    )
    net.anchors = anchors

    def gradients(example, strategy):
        example.module.memory = strategy
        y = getattr(example.module, direction)(example.x, *example.context)
        return grad(real(y), example.inputs, allow_unused=True)

    assert_as_plain(Example(net, x, (context,)), memory, gradients)


@given(names, st.booleans(), anchors, memories, directions, seeds)
def test_second_order(name, real_basis, anchors, memory, direction, seed) -> None:
    torch.manual_seed(seed)
    net, x, context = (
        complex_stack(name, 3, real_basis),
        values(1, 3, *fitted(name, 4)),
        values(1, 1, *fitted(name, 4)),
    )
    net.anchors = anchors

    def second_order(example, strategy):
        example.module.memory = strategy
        inputs = example.inputs
        loss = real(getattr(example.module, direction)(example.x, *example.context))
        first = grad(loss, inputs, create_graph=True, materialize_grads=True)
        penalty = sum((g * g.conj()).real.sum() for g in first) + 0 * loss
        return grad(penalty, inputs, materialize_grads=True)

    assert_as_plain(Example(net, x, (context,)), memory, second_order)


@given(st.integers(1, 6), seeds)
def test_complex_reflections_are_unitary(channels, seed) -> None:
    torch.manual_seed(seed)
    U = householder_product(values(min(3, channels), channels))
    assert_equal(U.mH @ U, torch.eye(channels, dtype=U.dtype))


def test_complex_reflections_of_a_real_state() -> None:
    mix = Householder1x1(4).to(torch.complex64)
    with pytest.raises(ValueError, match="complex, but the state is real"):
        mix(torch.randn(1, 4))


@given(st.sampled_from(["tanh", "sigmoid", "exp"]), seeds)
def test_the_modulus_of_a_complex_scale_stays_within_its_bound(scale, seed) -> None:
    torch.manual_seed(seed)
    layer = AffineCoupling(nn.Linear(2, 4), scale=scale, bound=1.5).to(torch.complex128)
    x1 = 20 * values(9, 2)
    one, zero = (torch.cat([x1, torch.full_like(x1, x2)], 1) for x2 in (1, 0))
    modulus = (layer(one) - layer(zero))[:, 2:].abs()
    assert ((modulus > 1 / 1.5 - 1e-9) & (modulus < 1.5 + 1e-9)).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("memory", ["invert", "store"])
def test_a_scale_has_no_log_determinant(direction, memory) -> None:
    net = InvertibleSequential(MAKERS["AffineCoupling"](3, 1), memory=memory)
    net.to(torch.complex128)
    with pytest.raises(NotImplementedError, match="no log-determinant of a complex"):
        getattr(net, f"{direction}_and_log_det")(values(2, 3, 5))


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_log_determinant_of_what_preserves_volume_is_a_real_zero(direction) -> None:
    net = complex_stack("OrthogonalCoupling", 2, real_basis=False)
    _, log_det = getattr(net, f"{direction}_and_log_det")(values(2, 3, 5))
    assert torch.equal(log_det, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("anchors", [0, 2])
def test_a_conjugate_view(anchors) -> None:
    net, x = complex_stack("AdditiveCoupling", 3, False), values(2, 3, 5)
    results = []
    for net.memory in ("invert", "store"):
        net.anchors = anchors
        results.append(grad(real(net(x.conj())), [x, *net.parameters()]))
    assert_all_equal(*results)
