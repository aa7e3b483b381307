"""Under `torch.compile` output and anchors are kept, and nothing else."""

import functools

import pytest
import torch

from invtorch import AdditiveCoupling, InvertibleSequential
from invtorch.planning import measure_memory
from tests.compilation import COMPILING, compiled
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner

pytestmark = [*COMPILING, ON_THE_CPU, pytest.mark.slow]
DEPTHS = (1, 2, 4)  # to compile more layers takes long


@functools.cache
def saved_states(
    depth: int, memory: str, anchors: int = 0, guard: str | None = None
) -> float:
    torch._dynamo.reset()
    layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(depth)]
    net = InvertibleSequential(*layers, memory=memory, anchors=anchors, guard=guard)
    x = torch.randn(1, 4, 16, 16)
    function = compiled(net)
    function(x).sum().backward()
    return measure_memory(lambda: function(x)).live / x.nbytes


def test_memory_is_flat_in_depth() -> None:
    assert [saved_states(depth, "invert") for depth in DEPTHS] == [1.0, 1.0, 1.0]
    plain = [saved_states(depth, "store") for depth in DEPTHS]
    assert plain[2] > plain[1] + 2 > plain[0] + 3


def test_the_guard_keeps_at_most_17_numbers_a_channel() -> None:
    for depth in DEPTHS[::2]:
        found = saved_states(depth, "invert", guard="raise")
        assert 1 <= found <= 1 + 17 * 4 * (depth + 1) / (4 * 16 * 16)


def test_anchors_cost_one_state_each() -> None:
    assert [saved_states(4, "invert", anchors) for anchors in (1, 3)] == [2, 4]
