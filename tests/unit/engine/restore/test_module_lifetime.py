"""Nothing keeps a module that was taken out of a network."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from invtorch import AdditiveCoupling, AffineCoupling, InvertibleSequential
from invtorch.module import MEMORY
from tests.parts import Conditioner, Scale
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


def of_a_class() -> object:
    """Return an object of a class that is made here."""
    return type("Made", (), {"__call__": lambda *_: None})()


def layer_of_a_class() -> tuple[nn.Module, type]:
    layer = type("Made", (Scale,), {})(4)
    return layer, type(layer)


def conditioner_of_a_class() -> tuple[nn.Module, type]:
    conditioner = type("Made", (Conditioner,), {})(2, 2)
    return AdditiveCoupling(conditioner), type(conditioner)


def parametrized() -> tuple[nn.Module, type]:
    conditioner = weight_norm(nn.Conv2d(2, 2, 1))
    return AdditiveCoupling(conditioner), type(conditioner)


def with_an_attribute() -> tuple[nn.Module, type]:
    conditioner = Conditioner(2, 2)
    conditioner.settings = {"own": of_a_class()}
    return AdditiveCoupling(conditioner), type(conditioner.settings["own"])


def with_a_hook() -> tuple[nn.Module, type]:
    conditioner, hook = Conditioner(2, 2), of_a_class()
    conditioner.register_forward_hook(hook)
    return AdditiveCoupling(conditioner), type(hook)


def with_a_function() -> tuple[nn.Module, type]:
    scale = type("Made", (), {"__call__": lambda _, a: a.tanh()})()
    return AffineCoupling(Conditioner(2, 4), scale=scale), type(scale)


@pytest.mark.parametrize("memory", [*MEMORY, "auto"])
@pytest.mark.parametrize(
    "make",
    [
        layer_of_a_class,
        conditioner_of_a_class,
        parametrized,
        with_an_attribute,
        with_a_hook,
        with_a_function,
    ],
)
def test_classes_are_freed_with_their_network(make, memory) -> None:
    """PyTorch makes one for each parametrized module; others enclose large tensors."""
    layer, made = make()
    net = InvertibleSequential(Scale(4), layer, memory=memory)
    net(torch.randn(2, 4, 3, 3)).sum().backward()
    kind = weakref.ref(made)
    del layer, net, made
    gc.collect()
    assert kind() is None
