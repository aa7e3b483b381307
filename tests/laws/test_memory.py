"""The memory of a pass does not know the depth of the network."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.registry import KEEPING, MAKERS
from tests.strategies import directions

pytestmark = ON_THE_CPU

DEPTHS = (8, 64, 400)


def network(depth: int, kind: str = "OrthogonalCoupling", **options):
    layers = [MAKERS[kind](8, 2) for _ in range(depth)]
    return InvertibleSequential(*layers, **options), torch.randn(2, 8, 8, 8)


def live_states(
    depth: int,
    direction: str = "forward",
    kind: str = "OrthogonalCoupling",
    **options,
) -> float:
    net, x = network(depth, kind, **options)
    return measure_memory(lambda: getattr(net, direction)(x)).live / x.nbytes


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_live_bytes_after_forward_are_equal_at_every_depth(direction) -> None:
    live = [live_states(depth, direction, anchors=0) for depth in DEPTHS]
    assert live == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("kind", sorted({*MAKERS} - KEEPING))
def test_live_bytes_are_equal_at_every_depth_for_any_module(kind, direction) -> None:
    live = [live_states(depth, direction, kind, anchors=0) for depth in (8, 32)]
    assert live == [1.0, 1.0]


def test_the_default_keeps_at_most_eight_states_more() -> None:
    assert [live_states(depth) for depth in DEPTHS] == [8.0, 9.0, 9.0]


@given(st.integers(1, 40), st.integers(0, 12), directions)
def test_anchors_are_kept_and_nothing_else(depth, anchors, direction) -> None:
    expected = 1 + min(anchors, depth - 1)
    assert live_states(depth, direction, anchors=anchors) == expected


def test_a_list_of_every_state_does_not_pass() -> None:
    def live_with_hoard(depth: int) -> float:
        net, x = network(depth, anchors=0)
        hoard = []
        for layer in net:
            layer.register_forward_hook(lambda *args: hoard.append(args[-1]))
        return measure_memory(lambda: net(x)).live / x.nbytes

    assert [live_with_hoard(depth) for depth in (8, 64)] == [8.0, 64.0]


@pytest.mark.parametrize("memory", ["store", "checkpoint"])
def test_the_other_strategies_grow_with_depth(memory) -> None:
    assert live_states(64, memory=memory) >= 8 * live_states(8, memory=memory) - 8


@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.parametrize("kind", sorted({*MAKERS} - KEEPING))
@pytest.mark.parametrize("anchors", [0, 4])
def test_the_peak_of_a_step_is_flat(kind, anchors) -> None:
    def peak(depth: int) -> int:
        net, x = network(depth, kind, anchors=anchors)
        for tensor in (x.requires_grad_(), *net.parameters()):
            tensor.grad = torch.zeros_like(tensor)
        return measure_memory(lambda: net(x).square().sum().backward()).peak

    many, few = peak(24), peak(8)
    assert many <= few <= 1.05 * many


@pytest.mark.parametrize("anchors", [0, 8])
def test_nothing_outlives_the_pass(anchors) -> None:
    net, x = network(32, anchors=anchors)
    net(x).sum().backward()

    def step() -> None:
        net(x).square().sum().backward()

    def dropped_forward() -> None:
        net(x)

    assert measure_memory(step).live == 0
    assert measure_memory(dropped_forward).live == 0


def peak_in_states(net, x) -> float:
    """Return the peak of a second backward pass onto existing gradients."""
    net(x).square().mean().backward()
    return measure_memory(lambda: net(x).square().mean().backward()).peak / x.nbytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "channels", "hidden", "size"), [(2, 32, 2, 16), (1, 64, 64, 64)]
)
def test_an_additive_network_takes_six_states_at_every_depth(
    batch, channels, hidden, size
) -> None:
    """Plain autograd takes at least 8 at depth 4 and 72 at depth 64."""

    def network(depth: int, memory: str):
        half = channels // 2
        conditioners = (
            nn.Sequential(
                nn.Conv2d(half, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden, half, 3, padding=1),
            )
            for _ in range(depth)
        )
        layers = [AdditiveCoupling(conditioner) for conditioner in conditioners]
        return InvertibleSequential(*layers, memory=memory, anchors=0)

    x = torch.randn(batch, channels, size, size)
    inverted = [peak_in_states(network(depth, "invert"), x) for depth in (4, 64)]
    assert inverted[0] == inverted[1] <= 6
    stored = [peak_in_states(network(depth, "store"), x) for depth in (4, 64)]
    assert stored[1] > 70 > 14 > stored[0]


@pytest.mark.slow
def test_accumulation_holds_no_second_copy_of_all_gradients() -> None:
    """At 100 layers of the paper, all gradients together are 64 states."""
    layers = [
        OrthogonalCoupling(
            GatedResidualBlock(32, 32, hidden=64, stride=(1, 2, 4, 8)[i % 4]),
            channels=64,
        )
        for i in range(100)
    ]
    net = InvertibleSequential(*layers, anchors=0)
    x = torch.randn(1, 64, 64, 64)
    assert sum(p.nbytes for p in net.parameters()) > 60 * x.nbytes
    assert peak_in_states(net, x) <= 16
