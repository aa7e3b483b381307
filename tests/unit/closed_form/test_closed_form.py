"""Layers that differentiate themselves give the gradients of plain autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from invtorch import AdditiveCoupling, InvertibleSequential, OrthogonalCoupling
from tests.parts import known
from tests.stacks import both, chained, closed_form_network, gated, gradients_of, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def test_a_layer_in_closed_form_saves_nothing_but_input_and_output(
    recorded_calls,
) -> None:
    net, x = closed_form_network(0), sample(requires_grad=True)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = net(x)
    assert len(recorded_calls) == len(net)
    assert all(recorded_calls)
    start, output = saved
    assert torch.equal(start, x)
    assert torch.equal(output, y)
    y.sum().backward()


def tied(net):
    net[2].conditioner.gather.bias = net[2].conditioner.look.bias
    net[4].vectors = net[6].vectors


def frozen(net):
    net[2].requires_grad_(False)
    net[4].conditioner.look.requires_grad_(False)
    net[5].conditioner.gather.bias.requires_grad_(False)


def all_frozen(net):
    net.requires_grad_(False)


@pytest.mark.parametrize("change", [tied, frozen, all_frozen])
@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_parameters_of_all_kinds(anchors, recorded_calls, change, memory) -> None:
    net, x = closed_form_network(anchors), sample(requires_grad=True)
    change(net)
    expected = gradients_of(net, x)
    net.memory = "store"
    oracle = expected()
    recorded_calls.clear()
    net.memory = memory
    assert_all_equal(expected(), oracle)
    assert all(recorded_calls)


def test_functional_call_with_the_backward_outside(anchors) -> None:
    net, x = closed_form_network(anchors), sample()
    own = {name: p.detach() for name, p in net.named_parameters()}
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)

    def gradients():
        scaled = {name: p * factor for name, p in own.items()}
        y = functional_call(net, scaled, (x,))
        return grad(weighed(y), [factor])

    assert_all_equal(*both(net, gradients))


def hook(net):
    net[2].conditioner.register_forward_hook(lambda *call: 2 * call[-1])


def patch(net):
    net[3].conditioner.look.forward = lambda h: 2 * h


def exchange_a_part(net):
    net[2].conditioner = gated(2).double()


def exchange_a_parameter(net):
    net[4].vectors = nn.Parameter(torch.randn_like(net[4].vectors))


def exchange_an_attribute(net):
    net[3].conditioner.stride = (1, 1)
    net[5].split = 1


@pytest.mark.parametrize(
    "change",
    [exchange_a_part, exchange_a_parameter, exchange_an_attribute, hook, patch],
)
@pytest.mark.parametrize("again", [False, True])
def test_what_changes_before_backward_does_not_matter(anchors, change, again) -> None:
    x = sample(requires_grad=True)

    def gradients(memory, changed):
        torch.manual_seed(0)
        net = closed_form_network(anchors)
        net.memory = memory
        tensors = [x, *net.parameters()]
        y = net(x)
        changed(net)
        found = grad(weighed(y), tensors, create_graph=again)
        if again:
            squares = sum(g.square().sum() for g in found)
            found += grad(squares, tensors)
        return found

    assert_all_equal(gradients("invert", change), gradients("store", lambda _: None))


@pytest.mark.parametrize("half", [2, 12])
def test_batched_gradients(anchors, half) -> None:
    net = closed_form_network(anchors, half=half)
    x = sample(2 * half, requires_grad=True)
    cotangents = torch.randn(3, *x.shape, dtype=torch.float64)

    def gradients():
        tensors = [x, *net.parameters()]
        return grad(net(x), tensors, cotangents, is_grads_batched=True)

    assert_all_equal(*both(net, gradients))


@pytest.mark.parametrize("block", [gated, chained])
def test_backward_under_autocast_keeps_the_precision_of_forward(anchors, block) -> None:
    net, x = (
        closed_form_network(anchors, block).float(),
        sample(requires_grad=True).float(),
    )

    def gradients(cast):
        loss = weighed(net(x))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return grad(loss, list(net.parameters()))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_parameters_changed_before_backward(memory) -> None:
    net = closed_form_network(0)
    net.memory = memory
    y = net(sample(requires_grad=True))
    with torch.no_grad():
        net[3].conditioner.look.parametrizations.weight.original1.mul_(2)
    with pytest.raises(RuntimeError, match=r"^original1 of layer 3 .* modified in pla"):
        y.sum().backward()


def test_errors_name_the_layer_and_what_the_conditioner_returned() -> None:
    net = InvertibleSequential(OrthogonalCoupling(known(2, 3), channels=5)).double()
    net[0].conditioner[2] = nn.Conv2d(4, 2, 3, padding=1).double()
    with pytest.raises(ValueError, match="Sequential returned shape") as caught:
        net(sample(5, requires_grad=True))
    assert "layer 0 (OrthogonalCoupling)" in str(caught.value.__notes__)


@pytest.mark.parametrize("block", [nn.Tanh, nn.Sequential])
def test_conditioners_without_parameters(anchors, recorded_calls, block) -> None:
    layers = [AdditiveCoupling(block()) for _ in range(10)]
    net = InvertibleSequential(*layers, anchors=anchors)
    assert_all_equal(*both(net, gradients_of(net, sample(requires_grad=True))))
    assert all(recorded_calls)


def test_a_weight_that_is_read_in_two_layers_of_a_conditioner(
    anchors, recorded_calls
) -> None:
    net, x = closed_form_network(anchors, chained), sample(requires_grad=True)
    for layer in net:
        layer.conditioner.append(layer.conditioner[0]).append(layer.conditioner[2])
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert all(recorded_calls)
