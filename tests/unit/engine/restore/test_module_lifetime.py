"""Nothing keeps a module that was taken out of a network."""

import gc
import weakref

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
