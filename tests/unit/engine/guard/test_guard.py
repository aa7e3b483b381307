"""The guard notices wrong states, names the layer, and does what it was told."""

import functools
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import AdditiveCoupling, AffineCoupling, InvertibleSequential
from invtorch.engine.guard.fingerprint import PROBES, fingerprint
from tests.devices import DEVICE
from tests.networks import CHANNELS, conditioner, images, orthogonal
from tests.parts import Conditioner

PLACE, DEPTH = 7, 16


class Wrong(AdditiveCoupling):
    """Its inverse takes back only 99 % of what was added."""

    replay = None

    def inverse(self, y, *context):
        x = super().inverse(y, *context)
        return y + 0.99 * (x - y)


class Noisy(nn.Module):
    """Takes numbers from an iterator, which no replay can rewind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conditioner(1.0)
        self.draw = functools.partial(next, itertools.cycle([0.0, 0.5, 1.0]))

    def forward(self, x):
        return self.inner(x) * (1 + self.draw())


class ReadsGlobal(nn.Module):
    """Multiplies by a number that is nobody's buffer."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.inner = conditioner(1.0)

    def forward(self, x):
        return self.inner(x) * type(self).factor


def net_with(layer, **options) -> InvertibleSequential:
    net = orthogonal(0.5, DEPTH, **{"anchors": 0, **options})
    net[PLACE] = layer
    return net


def step(net, x=None, between=lambda: None) -> None:
    loss = net(images() if x is None else x).square().mean()
    between()
    loss.backward()


def test_an_inverse_that_is_one_percent_wrong() -> None:
    net = net_with(Wrong(conditioner(1.0)))
    with pytest.raises(
        RuntimeError, match=r"inverting layer 7 \(Wrong\) is off.*wrong"
    ):
        step(net)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.parametrize(("dtype", "since"), [(None, True), (torch.bfloat16, False)])
def test_growth_is_named_where_less_is_allowed_because_of_it(dtype, since) -> None:
    net = orthogonal(2.5, 300, anchors=0)
    net[-1] = Wrong(conditioner(1.0))
    net.state_dtype = dtype and torch.float32
    with pytest.raises(RuntimeError, match="is allowed") as raised:
        step(net.to(dtype or torch.float32), images().to(dtype or torch.float32))
    assert ("since the state grows or shrinks by" in str(raised.value)) is since


def shrinking() -> AffineCoupling:
    """Return a coupling that scales its second half by a tenth."""
    network = conditioner(1.0)
    last = nn.Conv2d(16, CHANNELS, 3, padding=1)
    with torch.no_grad():
        last.bias[: CHANNELS // 2] = -1e3
    return AffineCoupling(nn.Sequential(*network[:2], last), scale="exp", bound=10.0)


def test_a_scale_of_a_tenth_ten_layers_deep() -> None:
    layers = [shrinking() for _ in range(10)]
    net = InvertibleSequential(*orthogonal(0.5, 3), *layers, anchors=0)
    with pytest.raises(RuntimeError, match=r"\(AffineCoupling\) is off by .*eps of"):
        step(net)


@pytest.mark.parametrize("anchors", [0, 2, DEPTH])
def test_a_conditioner_that_does_not_repeat_itself(anchors) -> None:
    net = net_with(AdditiveCoupling(Noisy()), anchors=anchors)
    with pytest.raises(
        RuntimeError, match=r"layer 7 \(AdditiveCoupling\).*random numb"
    ):
        step(net)


@pytest.mark.parametrize("anchors", [0, 2, DEPTH])
def test_a_conditioner_that_reads_global_state(anchors, monkeypatch) -> None:
    net = net_with(AdditiveCoupling(ReadsGlobal()), anchors=anchors)
    with pytest.raises(RuntimeError, match=r"layer 7 .*that changed since"):
        step(net, between=lambda: monkeypatch.setattr(ReadsGlobal, "factor", 1.01))


def doubled(layer: AdditiveCoupling) -> InvertibleSequential:
    """Return a float64 state over float32 conditioners, in which a layer is wrong."""
    return net_with(layer, state_dtype=torch.float64)


def test_what_is_caught_in_a_finer_state(monkeypatch) -> None:
    with pytest.raises(RuntimeError, match=r"inverting layer 7 \(Wrong\) is off.*wro"):
        step(doubled(Wrong(conditioner(1.0))))
    with pytest.raises(RuntimeError, match=r"layer 7 .*random numbers"):
        step(doubled(AdditiveCoupling(Noisy())))
    with pytest.raises(RuntimeError, match=r"layer 7 .*that changed since"):
        step(
            doubled(AdditiveCoupling(ReadsGlobal())),
            between=lambda: monkeypatch.setattr(ReadsGlobal, "factor", 1.01),
        )
    tenths = [shrinking() for _ in range(16)]  # ten of them come back in float64
    with pytest.raises(RuntimeError, match=r"\(AffineCoupling\) is off by"):
        step(InvertibleSequential(*tenths, anchors=0, state_dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_what_is_caught_over_half_precision(dtype, mixed, monkeypatch) -> None:
    """An error of more than four roundings of the conditioner, and its layer."""

    def half_step(layer, between=lambda: None) -> None:
        net, x = net_with(layer, state_dtype=torch.float32), images()
        if not mixed:
            net, x = net.to(dtype), x.to(dtype)
        with torch.autocast(DEVICE, dtype, enabled=mixed):
            loss = net(x).square().mean()
        between()
        loss.backward()

    with pytest.raises(RuntimeError, match=r"layer 7 .*appears there at once"):
        half_step(AdditiveCoupling(Noisy()))
    with pytest.raises(RuntimeError, match=r"layer 7 .*appears there at once"):
        half_step(
            AdditiveCoupling(ReadsGlobal()),
            lambda: monkeypatch.setattr(ReadsGlobal, "factor", 2.0),
        )


def test_a_parameter_replaced_behind_the_back_of_autograd() -> None:
    net = net_with(AdditiveCoupling(conditioner(1.0)))
    weight = net[PLACE].conditioner[0].weight

    def replace() -> None:
        weight.data = weight.data * 1.01

    with pytest.raises(RuntimeError, match=r"layer 7 \(AdditiveCoupling\)"):
        step(net, between=replace)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_by_the_layer_that_made_it(value) -> None:
    net = orthogonal(0.5, DEPTH)
    with torch.no_grad():
        net[5].conditioner[2].bias[3] = value
    with pytest.raises(
        RuntimeError, match=r"^layer 5 \(Orth.*made NaN or Inf of a fin"
    ):
        step(net)


def test_an_input_that_is_not_finite() -> None:
    with pytest.raises(RuntimeError, match="input of the container contains NaN"):
        step(orthogonal(0.5, 4), images() / 0)


class WrongThere(AdditiveCoupling):
    """Its inverse is wrong at one position."""

    replay = None
    there, wrong = (0, 0, 0, 0), 0.0

    def inverse(self, y, *context):
        x = super().inverse(y, *context)
        x[self.there] += self.wrong
        return x


@given(
    st.tuples(st.just(0), *(st.integers(0, n - 1) for n in (32, 48, 64))),
    st.sampled_from([1.0, -3.0, float("nan"), float("inf")]),
)
def test_an_error_of_one_element_of_a_large_state(there, wrong) -> None:
    layers = [AdditiveCoupling(nn.Conv2d(16, 16, 1)) for _ in range(3)]
    layers[1] = WrongThere(nn.Conv2d(16, 16, 1))
    layers[1].there, layers[1].wrong = there, wrong
    net = InvertibleSequential(*layers, anchors=0)
    with pytest.raises(RuntimeError, match=r"inverting layer 1 \(WrongThere\) is"):
        step(net, torch.randn(1, 32, 48, 64))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_elsewhere(device) -> None:
    with torch.device("cpu"):
        net, x = orthogonal(0.5, 4, anchors=0), torch.randn(1, CHANNELS, 9, 11)
    with torch.device(device):
        step(net, x)
        states = (torch.randn(3, 7, 5, 2, device="cpu"),)
        assert fingerprint(states).shape == (3 * 7, PROBES)


def test_a_second_backward_of_the_same_pass_is_guarded_again() -> None:
    net, x = net_with(Wrong(conditioner(1.0))), images()
    loss = net(x).square().mean()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"layer 7 \(Wrong\)"):
            loss.backward(retain_graph=True)


def test_second_derivatives_are_guarded() -> None:
    net = net_with(Wrong(conditioner(1.0)))
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match=r"layer 7 \(Wrong\)"):
        torch.autograd.grad(net(x).square().sum(), x, create_graph=True)


def test_the_inverse_direction_is_guarded() -> None:
    net = net_with(Wrong(conditioner(1.0)))
    with pytest.raises(RuntimeError, match=r"\(Wrong\) is off"):
        net.inverse(images()).square().mean().backward()


def test_a_state_that_starts_from_zero_passes_the_guard() -> None:
    step(orthogonal(0.5, DEPTH, anchors=0), torch.zeros(1, CHANNELS, 8, 8))


def test_a_container_with_its_guard_can_be_copied() -> None:
    net = orthogonal(0.5, 4, guard="adapt", anchors="auto")
    step(net)
    copy = pickle.loads(pickle.dumps(net))
    assert (copy.guard, copy.anchors) == ("adapt", "auto")


class Inner(nn.Module):
    """A conditioner with a container inside, in which a layer is wrong."""

    def __init__(self) -> None:
        super().__init__()
        layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(3)]
        self.net = InvertibleSequential(*layers, Wrong(Conditioner(2, 2)), anchors=0)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("deeper", [False, True])
def test_a_container_in_a_conditioner_is_guarded_on_its_own(deeper) -> None:
    """A container in a conditioner is guarded for itself, once the pass is over."""
    layer = AdditiveCoupling(Inner())
    if deeper:
        middle = InvertibleSequential(layer, anchors=0)
        layer = AdditiveCoupling(nn.Sequential(middle))
    channels = 16 if deeper else 8
    first, last = (AdditiveCoupling(conditioner(0.5, channels // 2)) for _ in range(2))
    net = InvertibleSequential(first, layer, last, anchors=0)
    with pytest.raises(RuntimeError, match=r"inverting layer 3 \(Wrong\)"):
        step(net, torch.randn(2, channels, 5, 5))
    assert all(p.grad is not None for p in net.parameters())
