"""Whatever autograd is asked for, the gradients are those of plain autograd."""

from functools import partial

import pytest
import torch
from torch import nn

from invtorch import InvertibleSequential
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.stacks import both, couplings, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal


@pytest.mark.parametrize("frozen", ["first", "last", "some", "all but one"])
def test_frozen_parameters(anchors, frozen) -> None:
    net, x = stack(anchors), sample()
    for i, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(
            {
                "first": i >= 20,
                "last": i < 20,
                "some": i % 3 == 0,
                "all but one": i == 17,
            }[frozen]
        )

    def gradients():
        weighed(net(x)).backward()
        return [p.grad for p in net.parameters()]

    assert_all_equal(*both(net, gradients))


def test_unused_parameters(anchors) -> None:
    net, x = stack(anchors), sample()
    for layer in couplings(net)[::4]:
        layer.conditioner.idle = nn.Linear(3, 3).double()

    def gradients():
        weighed(net(x)).backward()
        return [p.grad for p in net.parameters()]

    assert_all_equal(*both(net, gradients))


def test_shared_blocks(anchors) -> None:
    layers = list(stack(0))
    net = InvertibleSequential(*layers, *layers[::-1], *layers[:3], anchors=anchors)
    x = sample(requires_grad=True)

    def gradients():
        return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_shared_blocks_second_order(anchors) -> None:
    layers = list(stack(0, depth=3))
    net = InvertibleSequential(*layers, *layers, *layers, *layers, anchors=anchors)
    x = sample(requires_grad=True)

    def second_order():
        inputs = [x, *parameters(net)]
        first = torch.autograd.grad(weighed(net(x)), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    assert_all_equal(*both(net, second_order))


def test_create_graph_on_a_linear_loss_keeps_its_history() -> None:
    net, x = stack(0), sample(requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    assert gradient.requires_grad


def test_autograd_grad_of_a_few_parameters(anchors) -> None:
    net, x = stack(anchors), sample()
    chosen = [net[4].conditioner.first.weight, *net[5].parameters(), net[7].vectors]
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), chosen)))


def test_backward_to_chosen_inputs_leaves_the_others(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    chosen = net[7].vectors

    def gradients():
        x.grad = None
        weighed(net(x)).backward(inputs=[chosen])
        assert x.grad is None
        assert net[4].conditioner.first.weight.grad is None
        return [chosen.grad]

    assert_all_equal(*both(net, gradients))


def test_retain_graph_and_a_second_backward(anchors) -> None:
    net, x = stack(anchors), sample()

    def gradients():
        loss = weighed(net(x))
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second"):
            loss.backward()
        return [p.grad for p in net.parameters()]

    assert_all_equal(*both(net, gradients))


def test_two_forwards_then_backward_in_either_order(anchors) -> None:
    net, a, b = stack(anchors), sample(requires_grad=True), sample(requires_grad=True)

    def gradients():
        a.grad = b.grad = None
        first, second = net(a), net(b)
        weighed(first).backward()
        weighed(second).backward()
        return [a.grad, b.grad, *[p.grad for p in net.parameters()]]

    assert_all_equal(*both(net, gradients))


def test_the_caller_goes_on_using_its_input(anchors) -> None:
    net, x = stack(anchors), sample(6).requires_grad_()

    def gradients():
        x.grad = None
        before = x.detach().clone()
        h = torch.relu(x)[:, 1:5]
        weighed(net(h) + h * h).backward()
        assert torch.equal(x, before)
        return [x.grad, *[p.grad for p in net.parameters()]]

    assert_all_equal(*both(net, gradients))


def test_auxiliary_and_inner_losses(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    inner = []
    net[4].register_forward_hook(lambda _, __, output: inner.append(output))

    def gradients(outer: float):
        inner.clear()
        y = net(x)
        loss = weighed(inner[0]) + (outer * weighed(y) if outer else 0)
        return torch.autograd.grad(loss, [x, *parameters(net)], allow_unused=True)

    for outer in (0.0, 0.5):
        assert_all_equal(*both(net, lambda outer=outer: gradients(outer)))


def test_both_directions_in_one_graph(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        y = net(x)
        again = net.inverse(y * 1.5)
        return torch.autograd.grad(weighed(again), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))
    assert_equal(net.inverse(net(x)), x)


@ON_THE_CPU
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_no_grad_and_inference_mode(anchors, direction) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            call = partial(getattr(net, direction), x)
            assert not call().requires_grad
            assert measure_memory(call).live == x.nbytes


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_backward_in_inference_mode(anchors, memory) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    results = []
    for net.memory in (memory, "store"):
        net.zero_grad()
        x.grad = None
        loss = weighed(net(x))
        with torch.inference_mode():
            loss.backward()
        results.append([x.grad.clone(), *[p.grad.clone() for p in net.parameters()]])
    assert_all_equal(*results)


def test_hooks_on_parameters_and_contexts_fire_once(anchors) -> None:
    net, x, context = stack(anchors), sample(), sample(1, requires_grad=True)
    context.register_hook(lambda grad: grad * 3)
    for parameter in net[2].parameters():
        parameter.register_hook(lambda grad: grad * 3)

    def gradients():
        return torch.autograd.grad(
            weighed(net(x, context)), [context, *net.parameters()]
        )

    assert_all_equal(*both(net, gradients))


def test_freezing_between_forward_and_backward(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        loss = weighed(net(x))
        net[4].requires_grad_(False)
        x.grad = None
        loss.backward()
        net[4].requires_grad_(True)
        return [x.grad, *(p.grad for p in net.parameters())]

    assert_all_equal(*both(net, gradients))


def test_batched_gradients(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    directions = sample()[None].repeat(3, 1, 1, 1, 1) * torch.arange(
        3, dtype=torch.float64
    ).view(3, 1, 1, 1, 1)

    def gradients():
        y = net(x)
        return torch.autograd.grad(
            y, [x, *net.parameters()], directions, is_grads_batched=True
        )

    assert_all_equal(*both(net, gradients))
