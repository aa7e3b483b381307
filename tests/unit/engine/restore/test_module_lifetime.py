"""Nothing keeps a module that was taken out of a network."""

import gc
import weakref

import pytest

from tests.stacks import sample, stack
from tests.unit.engine.restore.test_module_state import conditioner, gradients, network


def test_a_replaced_module_is_freed() -> None:
    net = network(anchors=0)
    gradients(net)
    part = weakref.ref(net[1].conditioner)
    weight = weakref.ref(net[1].conditioner[0].first.weight)
    net[1].conditioner = conditioner().double()
    assert part() is None
    assert weight() is None


def test_a_removed_layer_in_a_reference_cycle_is_freed() -> None:
    net = network(anchors=0)
    vars(net[-1].conditioner)["layer"] = net[-1]
    gradients(net)
    layer = weakref.ref(net[-1])
    del net[-1]
    gc.collect()
    assert layer() is None


def test_a_removed_layer_is_freed() -> None:
    net = network(anchors=0)
    gradients(net)
    layer = weakref.ref(net[-1])
    part = weakref.ref(net[-1].conditioner[1][1])
    del net[-1]
    assert layer() is None
    assert part() is None


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("other", [-1, 0, 1])
def test_a_hook_that_stores_outputs_keeps_one_pass(anchors, backward, other) -> None:
    """On the module itself, or on the one before or after it."""
    net, x, outputs = stack(anchors, depth=5), sample(), []
    modules = [*net.modules()]
    for i, module in enumerate(modules):
        holder = modules[(i + other) % len(modules)]

        def store(module, arguments, output, holder=holder) -> None:
            holder.output = output
            outputs.append(weakref.ref(output))

        module.register_forward_hook(store)
    alive = []
    for _ in range(4):
        loss = net(x).sum()
        if backward:
            loss.backward()
        del loss
        gc.collect()
        alive.append(sum(output() is not None for output in outputs))
    assert len({*alive[1:]}) == 1, alive
