"""The memory of a pass does not know the depth of the network."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import InvertibleSequential
from invtorch.planning import measure_memory
from tests.registry import MAKERS
from tests.strategies import directions

DEPTHS = (8, 64, 400)


def network(depth: int, kind: str = "OrthogonalCoupling", **options):
    layers = [MAKERS[kind](8, 2) for _ in range(depth)]
    return InvertibleSequential(*layers, **options), torch.randn(2, 8, 8, 8)


def live_states(depth: int, direction: str = "forward", **options) -> float:
    net, x = network(depth, **options)
    return measure_memory(lambda: getattr(net, direction)(x)).live / x.nbytes


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_live_bytes_after_forward_are_equal_at_every_depth(direction) -> None:
    live = [live_states(depth, direction, anchors=0) for depth in DEPTHS]
    assert live == [1.0, 1.0, 1.0]


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


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("anchors", [0, 4])
def test_the_peak_of_a_step_is_flat(kind, anchors) -> None:
    def peak(depth: int) -> int:
        net, x = network(depth, kind, anchors=anchors)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return measure_memory(lambda: net(x).square().sum().backward()).peak

    assert peak(60) <= peak(20) <= 1.05 * peak(60)


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
