"""Under `torch.compile` output and anchors are kept, and nothing else."""

import functools
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

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


@pytest.mark.parametrize("order", [(1.0, 0.6), (0.6, 1.0, 0.6)])
def test_what_fits_in_a_budget_is_stored_and_compiled(order) -> None:
    """The plan of each call counts, whatever was compiled before."""
    layers = [AdditiveCoupling(Conditioner(2, 2)).double() for _ in range(8)]
    net = InvertibleSequential(*layers, memory="auto", anchors=0, budget=10**9)
    x = torch.randn(1, 4, 16, 16, dtype=torch.float64)
    weights = [*net.parameters()]
    plain = torch.autograd.grad(net(x).square().sum(), weights)
    assert net.plan is not None
    full = net.plan.peak
    counter = CompileCounter()
    function = compiled(net, counter, fullgraph=False)
    for fraction in order:
        net.budget, counter.op_count = math.ceil(fraction * full), 0
        found = torch.autograd.grad(function(x).square().sum(), weights)
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other)
        assert net.plan is not None
        stored = {*net.plan.strategies} == {"store"}
        assert stored == (fraction == 1)
        if stored:
            assert measure_memory(lambda: function(x)).live > 8 * x.nbytes
        if stored:
            assert counter.op_count > 8 * 2  # a network and a sum in each layer


def test_a_plan_does_not_keep_other_containers_from_being_compiled() -> None:
    layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(2)]
    x = torch.randn(1, 4, 16, 16)
    counter = CompileCounter()
    for budget in (60_000, 10**9, 60_000):
        automatic = InvertibleSequential(
            *layers, memory="auto", anchors=0, budget=budget
        )
        counter.op_count = 0
        compiled(automatic, counter, fullgraph=False)(x).sum().backward()
        assert automatic.plan is not None
        stored = {*automatic.plan.strategies} == {"store"}
        assert stored == (budget == 10**9) == (counter.op_count > 2 * 2)
    other = InvertibleSequential(*layers)
    compiled(other, "eager", fullgraph=True)(x).sum().backward()


def test_anchors_cost_one_state_each() -> None:
    assert [saved_states(4, "invert", anchors) for anchors in (1, 3)] == [2, 4]
