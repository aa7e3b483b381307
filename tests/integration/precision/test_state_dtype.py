"""A state in higher precision than the conditioners, and states in half precision."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
)
from tests.devices import DEVICE
from tests.networks import (
    error,
    gradient,
    images,
    orthogonal,
    stacked,
)
from tests.parts import Conditioner, Reverse
from tests.strategies import costly
from tests.strategies import network_seeds as seeds

pytestmark = pytest.mark.slow
FINE = {"anchors": 0, "state_dtype": torch.float64}


def truth_of(net, x) -> torch.Tensor:
    exact = deepcopy(net).double()
    exact.memory = "store"
    return gradient(exact, x.double())


@pytest.mark.parametrize("strength", [0.1, 1.0])
@costly(2)
@given(seed=seeds)
def test_float64_over_float32_needs_no_anchor(strength, seed) -> None:
    torch.manual_seed(seed)
    net, x = orthogonal(strength, 400, anchors=0, state_dtype=torch.float64), images()
    found, truth = gradient(net, x), truth_of(net, x)
    net.memory, net.state_dtype = "store", None
    assert error(found, truth) <= error(gradient(net, x), truth)


@pytest.mark.parametrize("form", ["additive", "paper"])
@costly(1)
@given(seed=seeds)
def test_the_guard_allows_what_plain_autograd_would_lose(form, seed) -> None:
    torch.manual_seed(seed)
    net, x = stacked(form, 1.0, 300, **FINE), images()
    found, truth = gradient(net, x), truth_of(net, x)
    net.memory, net.state_dtype = "store", None
    assert error(found, truth) <= 1.5 * error(gradient(net, x), truth)


@pytest.mark.filterwarnings("ignore:the state grows")
def test_float64_over_float32_with_anchors_where_the_state_grows() -> None:
    net, x = orthogonal(2.0, 400, state_dtype=torch.float64), images()
    found, truth = gradient(net, x), truth_of(net, x)
    net.memory, net.state_dtype = "store", None
    assert error(found, truth) <= 1.5 * error(gradient(net, x), truth)


@pytest.mark.parametrize("depth", [64, 400])
@costly(2)
@given(seed=seeds)
def test_float32_over_bfloat16(depth, seed) -> None:
    torch.manual_seed(seed)
    net, x = orthogonal(0.5, depth, state_dtype=torch.float32), images()
    truth = truth_of(net, x)
    net, x = net.bfloat16(), x.bfloat16()
    found = gradient(net, x)
    net.memory = "store"
    assert error(found, truth) <= 1.05 * error(gradient(net, x), truth)


@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["additive", "paper", "algebraic"])
@costly(1)
@given(seed=seeds)
def test_float64_over_half_precision_needs_no_anchor(form, dtype, seed) -> None:
    """Rounding of the state hardly ever flips one of the conditioners' roundings."""
    torch.manual_seed(seed)
    net, x = stacked(form, 1.0, 400, **FINE), images()
    truth = truth_of(net, x)
    net, x = net.to(dtype), x.to(dtype)
    found = gradient(net, x)
    net.memory = "store"
    stored = gradient(net, x)
    assert error(found, stored) <= 0.05 * error(stored, truth)


@pytest.mark.filterwarnings("ignore:the state grows")
@costly(2)
@given(seed=seeds)
def test_rounding_of_coarser_layers_above_is_allowed(seed) -> None:
    """A layer without parameters is exact; what it is given to invert is not."""
    torch.manual_seed(seed)
    couplings = orthogonal(1.0, 200)
    net, x = InvertibleSequential(Reverse(), *couplings), images()
    truth = truth_of(net, x)
    net, x = net.bfloat16(), x.bfloat16().requires_grad_()
    net.state_dtype = torch.float32
    found = gradient(net, x)
    net.memory = "store"
    assert error(found, truth) <= 1.5 * error(gradient(net, x), truth)


@pytest.mark.parametrize("depth", [64, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_a_float32_state(depth, dtype) -> None:
    net, x = orthogonal(0.5, depth), images()
    truth = truth_of(net, x)

    def mixed() -> torch.Tensor:
        with torch.autocast(DEVICE, dtype):
            y = net(x)
        net.zero_grad()
        y.square().mean().backward()
        return torch.cat([p.grad.flatten().double() for p in net.parameters()])

    found = mixed()
    net.memory = "store"
    assert error(found, truth) <= 1.05 * error(mixed(), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_state_is_guarded_or_refused(dtype) -> None:
    net = orthogonal(0.5, 64).to(dtype)
    x = images().to(dtype)
    plain = deepcopy(net)
    plain.memory = "store"
    truth = truth_of(net, x)
    assert error(gradient(net, x), truth) <= 1.5 * error(gradient(plain, x), truth)
    net.guard = None
    with pytest.raises(
        RuntimeError, match=r"float16 cannot be rebuilt.*state_dtype=to"
    ):
        net(x)
    net.memory = "checkpoint"
    assert torch.equal(gradient(net, x), gradient(plain, x))


def test_a_strong_half_precision_state_is_refused_by_the_guard() -> None:
    net = orthogonal(2.0, 64, anchors=0).bfloat16()
    with pytest.raises(RuntimeError, match="do not step"):
        gradient(net, images().bfloat16())


@pytest.mark.parametrize("memory", ["invert", "store", "checkpoint"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_input_and_output_keep_their_dtype(memory, direction) -> None:
    layers = [
        AdditiveCoupling(Conditioner(2, 2)),
        Householder1x1(4),
        OrthogonalCoupling(Conditioner(2, 2), channels=4),
    ]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    net = InvertibleSequential(*layers, memory=memory, state_dtype=torch.float64)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y, log_det = getattr(net, f"{direction}_and_log_det")(x)
    assert (y.dtype, log_det.dtype) == (torch.float32, torch.float32)
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    with torch.no_grad():
        assert net(x).dtype == torch.float32
    assert set(seen) == {torch.float64}


def test_it_is_the_outermost_container_s() -> None:
    inner = InvertibleSequential(
        AdditiveCoupling(Conditioner(2, 2)), state_dtype=torch.float64
    )
    net = InvertibleSequential(inner, AdditiveCoupling(Conditioner(2, 2)))
    net(torch.randn(1, 4, 3, 3)).sum().backward()


def test_the_round_trip_is_that_of_the_higher_precision() -> None:
    net = orthogonal(1.0, 100, state_dtype=torch.float64)
    x = images().double()
    with torch.no_grad():
        assert error(net.inverse(net(x)), x) <= 1e-10


def test_invalid_state_dtype() -> None:
    with pytest.raises(ValueError, match=r"state_dtype is torch.int32, but must be a"):
        InvertibleSequential(state_dtype=torch.int32)
