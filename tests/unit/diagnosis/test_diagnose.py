"""`diagnose` tells what is wrong with an inverse, and what would cure it."""

import re
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from invtorch import (
    AdditiveCoupling,
    InvertibleSequential,
    diagnose,
)
from tests.networks import CHANNELS, conditioner, images, orthogonal
from tests.parts import Conditioner, Leapfrog, Scale
from tests.unit.engine.guard.test_guard import shrinking


def test_a_healthy_network() -> None:
    found = diagnose(orthogonal(0.5, 12), images())
    assert found.recommendation.endswith("nothing needs to change.")
    assert found.gradient <= 1.5 * found.plain < 1e-5
    assert all(layer.round_trip < 1e-6 for layer in found.layers)
    assert not found.refusals


def test_the_gain_of_a_known_inverse() -> None:
    net = InvertibleSequential(*[Scale(4) for _ in range(3)])
    with torch.no_grad():
        for layer in net:
            layer.log_scale.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0]) * -2.3)
    found = diagnose(net, torch.randn(2, 4, 3, 3))
    assert all(abs(layer.gain - 1) < 1e-3 for layer in found.layers)
    assert abs(found.growth / torch.tensor(6.9).exp().item() - 1) < 1e-3


def test_the_gain_of_a_channel_that_shrinks() -> None:
    net = InvertibleSequential(*[Scale(2) for _ in range(4)])
    with torch.no_grad():
        for layer in net:
            layer.log_scale.copy_(torch.tensor([0.0, -2.0]))
    found = diagnose(net, torch.randn(2, 2, 30, 30))
    assert 1e3 < found.gain < 1e4  # exp(8) against a state that keeps its first channel


@pytest.mark.parametrize(("steep", "harmless"), [(1, True), (4, False)])
def test_steep_layers_are_advised_to_be_bounded_where_they_do_harm(
    steep, harmless
) -> None:
    net = orthogonal(0.5, 6, anchors=0)
    for i in range(steep):
        net[1 + i] = shrinking()
    found = diagnose(net, images())
    assert max(layer.gain for layer in found.layers) > 3
    assert ("multiplies an error by" in found.recommendation) == (not harmless)
    assert ("bound its scale" in found.recommendation) == (not harmless)
    assert ("nothing needs to change" in found.recommendation) == harmless


@pytest.fixture(scope="module")
def drifting():
    """Return the report of a network whose rebuilt states are off."""
    torch.manual_seed(0)
    return diagnose(orthogonal(2.0, 200, anchors=0), images())


@pytest.mark.slow
def test_the_difference_to_plain_autograd(drifting) -> None:
    kept = diagnose(orthogonal(0.5, 8), images())  # every state is an anchor
    assert all(layer.difference < 1e-6 for layer in kept.layers)
    for layer in drifting.layers:
        assert layer.difference <= 1.01 * (layer.gradient + layer.plain)
        assert layer.difference >= 0.99 * (layer.gradient - layer.plain)


def test_a_wrong_inverse_is_named() -> None:
    class Wrong(Scale):
        def inverse(self, y, *_):
            return super().inverse(y) * 1.01

    net = orthogonal(0.5, 8)
    net[3] = Wrong(CHANNELS)
    found = diagnose(net, images())
    assert found.recommendation.startswith("layer 3 (Wrong) does not come back")
    assert found.layers[3].round_trip > 1e-3 > found.layers[2].round_trip


@pytest.mark.slow
def test_drift_is_shown_and_its_cures_are_tried(drifting) -> None:
    found = drifting
    assert found.gradient > 100 * found.plain
    assert found.refusals
    for cure in ("anchors='auto'", "state_dtype=torch.float64"):
        (error,) = re.findall(rf"With {cure} they are (\S+) off", found.recommendation)
        assert float(error) < found.gradient / 10
    assert found.gain > 1e3


def test_the_table_has_a_row_a_layer() -> None:
    lines = str(diagnose(orthogonal(0.5, 5), images())).splitlines()
    assert lines[0].split() == [
        "layer", "round", "trip", "size", "gain", "gradient", "plain", "difference",
    ]  # fmt: skip
    assert [line.split()[1] for line in lines[1:6]] == list("01234")
    assert len(lines) == 9


def test_tuple_states_contexts_and_nested_containers() -> None:
    inner = InvertibleSequential(Leapfrog(3), Leapfrog(3))
    net = InvertibleSequential(Leapfrog(3), inner, Leapfrog(3).inv)
    state = (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    found = diagnose(net, state, torch.randn(2, 1, 4, 4))
    assert len(found.layers) == 4
    assert found.gradient <= 1.5 * found.plain


def test_nothing_of_the_model_changes() -> None:
    part = nn.Sequential(Conditioner(2, 2), nn.BatchNorm2d(2))
    net = InvertibleSequential(AdditiveCoupling(part), anchors=0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    diagnose(net, torch.randn(2, 4, 3, 3))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (net.memory, net.guard, net.anchors) == ("invert", "raise", 0)
    assert all(p.grad is None for p in net.parameters())


def test_a_single_layer() -> None:
    assert len(diagnose(AdditiveCoupling(conditioner(1.0)), images()).layers) == 1


def test_the_picture() -> None:
    figure = diagnose(orthogonal(1.0, 6), images()).plot()
    errors, sizes = figure.axes
    assert [len(line.get_xdata()) for line in errors.lines] == [6, 6, 6]
    assert len(sizes.lines) == 2


def test_the_picture_without_matplotlib(monkeypatch) -> None:
    found = diagnose(orthogonal(1.0, 2), images())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        found.plot()


def test_what_is_no_invertible_module() -> None:
    with pytest.raises(TypeError, match="model is a Linear, but only an Invertible"):
        diagnose(nn.Linear(2, 2), torch.randn(1, 2))


class Counts(AdditiveCoupling):
    """A coupling beside integers, which come first."""

    replay = None

    def forward(self, state):
        count, x = state
        return count + 1, super().forward(x)

    def inverse(self, state):
        count, y = state
        return count - 1, super().inverse(y)


def test_integers_of_a_state_ride_along() -> None:
    net = InvertibleSequential(*[Counts(conditioner(1.0)) for _ in range(4)])
    found = diagnose(net, (torch.arange(3), images()))
    assert found.gradient <= 1.5 * found.plain
    assert all(layer.round_trip < 1e-5 for layer in found.layers)
    assert "nothing needs to change" in found.recommendation


class Times(Conditioner):
    """A conditioner that its context multiplies."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x, told):
        return super().forward(x) * told.factor


@dataclass
class Told:
    """What a context may be."""

    factor: torch.Tensor


def test_nothing_of_the_graph_around_the_input_changes() -> None:
    encoder = nn.Conv2d(CHANNELS, CHANNELS, 1)
    x, factor = encoder(images()), torch.ones(1, requires_grad=True)
    layers = [AdditiveCoupling(Times(8)) for _ in range(3)]
    diagnose(InvertibleSequential(*layers), x, Told(factor))
    assert factor.grad is None
    assert all(p.grad is None for p in encoder.parameters())
    x.sum().backward()  # its graph is still there


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [
        (torch.float32, "With state_dtype=torch.float64 they are"),
        (torch.complex64, "With state_dtype=torch.float64 they are"),
        (torch.float64, None),
        (torch.complex128, None),
    ],
)
def test_the_finer_precision_is_finer(dtype, cure) -> None:
    torch.manual_seed(0)
    layers = [Drifts(nn.Conv2d(8, 8, 1)) for _ in range(3)]
    net = InvertibleSequential(*layers, anchors=0, guard=None)
    found = diagnose(net._apply(lambda t: t.to(dtype)), images().to(dtype))
    assert "With anchors='auto' they are" in found.recommendation
    assert ("state_dtype" in found.recommendation) == (cure is not None)
    assert (cure or "") in found.recommendation


class Drifts(AdditiveCoupling):
    """Its inverse is off by a little more than rounding is."""

    replay = None

    def inverse(self, y):
        return super().inverse(y) * (1 + 100 * torch.finfo(y.dtype).eps)
