"""What is kept, for a container and for a single block, changes no number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invtorch import Conjugation, Householder1x1, InvertibleSequential
from invtorch.engine.eager import tape
from invtorch.module import MEMORY
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.parts import Scale
from tests.stacks import parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def gradients(net, x):
    return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_all_strategies_give_the_same_numbers(direction) -> None:
    net, x = stack(0, dropout=0.5), sample(requires_grad=True)
    results, keys = [], []
    for net.memory in MEMORY:
        torch.manual_seed(0)
        y = getattr(net, direction)(x)
        results.append(torch.autograd.grad(weighed(y), [x, *parameters(net)]))
        keys.append(list(net.state_dict()))
    for result in results:
        assert_all_equal(result, results[-1])
    assert all(k == keys[0] for k in keys)


def test_a_block_may_keep_more_than_its_container() -> None:
    net, x = stack(0), sample(requires_grad=True)
    net.memory = "store"
    expected = gradients(net, x)
    net.memory = "invert"
    for memory in MEMORY[1:]:
        for chosen in ([3], [3, 4, 5], [0], [9], [0, 2, 4, 9]):
            for i in chosen:
                net[i].memory = memory
            assert_all_equal(gradients(net, x), expected)
            for i in chosen:
                net[i].memory = None


@ON_THE_CPU
def test_the_strategy_of_a_container_is_the_least_that_is_kept() -> None:
    net, x = stack(0), sample()
    for layer in net:
        layer.memory = "invert"
    net.memory = "checkpoint"
    assert measure_memory(lambda: net(x)).live == len(net) * x.nbytes


@ON_THE_CPU
@settings(max_examples=8)
@given(st.sets(st.integers(0, 29)), st.sampled_from(["offload", "checkpoint"]))
def test_a_block_that_keeps_its_input_costs_one_state(chosen, memory) -> None:
    net = InvertibleSequential(*[Scale(4) for _ in range(30)], anchors=0)
    for i in chosen:
        net[i].memory = memory
    x = torch.randn(1, 4, 6, 6)
    live = measure_memory(lambda: net(x)).live
    assert live == (1 + len(chosen - {0})) * x.nbytes


@ON_THE_CPU
def test_a_nested_container_and_a_composite_may_keep_more() -> None:
    x = torch.randn(1, 4, 6, 6)
    inner = InvertibleSequential(*[Scale(4) for _ in range(5)])
    composite = Conjugation(Householder1x1(4), Scale(4))
    layers = [*(Scale(4) for _ in range(5)), inner, composite, Scale(4)]
    net = InvertibleSequential(*layers, anchors=0)

    def states() -> float:
        return measure_memory(lambda: net(x)).live / x.nbytes

    assert states() == 1
    inner.memory = "checkpoint"
    assert states() == 1 + 5
    composite.memory = "offload"
    assert states() == 1 + 5 + 3


@ON_THE_CPU
def test_the_activations_of_a_stored_block_are_kept_and_no_others() -> None:
    net, x = stack(0), sample()
    lean = measure_memory(lambda: net(x)).live
    net[4].memory = "store"
    one = measure_memory(lambda: net(x)).live
    net.memory = "store"
    assert lean < one < lean + measure_memory(lambda: net(x)).live / 5


def test_offloaded_states_come_back_to_their_device(monkeypatch) -> None:
    net, x = stack(0), sample(requires_grad=True)
    net.memory = "store"
    expected = gradients(net, x)
    moved = []

    def elsewhere(tensor):
        moved.append(tensor.clone())
        return moved[-1]

    monkeypatch.setattr(tape, "_on_host", elsewhere)
    net.memory = "offload"
    assert_all_equal(gradients(net, x), expected)
    assert len(moved) == len(net)


def test_unknown_strategies() -> None:
    with pytest.raises(ValueError, match="memory is 'magic', but must be one of"):
        stack(0)[0].memory = "magic"


def test_a_stored_block_above_a_frozen_one_keeps_its_own_input() -> None:
    """Nothing is kept of the frozen block: no gradient has to reach it."""
    results = []
    for memory in ("invert", "store"):
        torch.manual_seed(1)
        net, inner = stack(0, depth=4), []

        def stop(module, args, y, inner=inner):
            inner.append(y)
            return y.detach()

        net.memory = memory
        net[1].register_forward_hook(stop)
        net[2].requires_grad_(False)
        net[2].memory = net[3].memory = "store"
        x = sample(requires_grad=True)
        loss = weighed(net(x)) + weighed(inner[0])
        wanted = [x, *[p for p in net.parameters() if p.requires_grad]]
        results.append(torch.autograd.grad(loss, wanted))
    assert_all_equal(*results)
