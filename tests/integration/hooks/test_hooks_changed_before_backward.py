"""Hooks of the modules inside of a layer are those of the forward pass."""

import pytest
import torch

from invtorch import AdditiveCoupling
from tests.parts import Conditioner
from tests.stacks import alternating, parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

MEMORIES = ["store", "checkpoint", "invert"]


def tripled(grads):
    return tuple(None if g is None else 3 * g for g in grads)


def on_the_way_back(module):
    return module.register_full_backward_hook(lambda _, grads, __: tripled(grads))


def before_the_way_back(module):
    return module.register_full_backward_pre_hook(lambda _, grads: tripled(grads))


def on_outputs(module):
    return module.register_forward_hook(
        lambda _, args, kwargs, y: y * 1.3, with_kwargs=True
    )


def on_inputs(module):
    return module.register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] * 1.3,), kwargs), with_kwargs=True
    )


HOOKS = [on_the_way_back, before_the_way_back, on_outputs, on_inputs]


def gradients(memory, before, between):
    """Return outputs and gradients of a net whose hooks change before backward."""
    torch.manual_seed(1)
    layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(4)]
    net = alternating(layers, memory=memory, anchors=0).double()
    parts = [layer.conditioner for layer in net[1::2]]
    handles = [handle for part in parts for handle in before(part)]
    x = sample(requires_grad=True)
    y = net(x)
    between(parts, handles)
    there = [[*part._forward_hooks, *part._backward_hooks] for part in parts]
    found = torch.autograd.grad(weighed(y), [x, *parameters(net)])
    after = [[*part._forward_hooks, *part._backward_hooks] for part in parts]
    assert after == there
    return [y.detach(), *found]


def assert_all_alike(before, between):
    plain, *others = [gradients(memory, before, between) for memory in MEMORIES]
    for found in others:
        assert_all_equal(found, plain)


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_removed_before_backward_count(register) -> None:
    assert_all_alike(
        lambda part: [register(part)],
        lambda _, handles: [handle.remove() for handle in handles],
    )


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_added_before_backward_do_not_count(register) -> None:
    assert_all_alike(
        lambda part: [part.register_full_backward_hook(lambda *_: None)],
        lambda parts, _: [register(part) for part in parts],
    )


def test_a_hook_that_removes_itself_is_called_again_in_a_replay() -> None:
    def once(part):
        def hook(module, args, y):
            handle.remove()
            y.register_hook(lambda grad: 2 * grad)

        handle = part.register_forward_hook(hook)
        return [handle]

    assert_all_alike(once, lambda *_: None)
