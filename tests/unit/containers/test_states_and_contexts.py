"""Every form of state and context that a container takes."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling, InvertibleSequential, VolumePreserving
from tests.parts import Conditioner, Leapfrog
from tests.stacks import alternating, both, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def test_context_that_needs_gradients(anchors) -> None:
    net, x, raw = stack(anchors), sample(requires_grad=True), sample(1)
    raw.requires_grad_()

    def gradients():
        context = torch.tanh(raw)
        y = net(x, context, context.square())
        return torch.autograd.grad(weighed(y), [x, raw, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_a_context_that_needs_gradients_only_later(anchors) -> None:
    net, x, context = stack(anchors), sample(requires_grad=True), sample(1)

    def gradients():
        loss = weighed(net(x, context.requires_grad_(False)))
        context.requires_grad_()
        return torch.autograd.grad(loss, [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_the_state_itself_as_context(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        h = x.sin()
        y = net(h, h[:, :1])
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_a_parameter_as_context(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    shared = net[0].conditioner.second.bias

    def gradients():
        context = shared.view(1, 2, 1, 1)[:, :1]
        return torch.autograd.grad(weighed(net(x, context)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_second_order_with_related_contexts(anchors) -> None:
    net, x, raw = stack(anchors), sample(requires_grad=True), sample(1)
    raw.requires_grad_()

    def second_order():
        context = raw.sin()
        y = net(x * raw, context, context * raw)
        inputs = [x, raw, *parameters(net)]
        first = torch.autograd.grad(weighed(y), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    assert_all_equal(*both(net, second_order))


def test_tuple_states(anchors) -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(10)], anchors=anchors)
    net.double()
    q, p = sample(2, requires_grad=True), sample(2, requires_grad=True)
    context = sample(1, requires_grad=True)

    def gradients(both_used: bool):
        a, b = net((q, p), context)
        loss = weighed(a) + (weighed(b * a) if both_used else 0)
        inputs = [q, p, context, *parameters(net)]
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    for both_used in (True, False):
        assert_all_equal(*both(net, lambda used=both_used: gradients(used)))


class Phase(NamedTuple):
    """A state with names."""

    place: torch.Tensor
    speed: torch.Tensor


class Kicked(VolumePreserving):
    """A layer of a state with names."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList([Conditioner(channels, channels)])

    def forward(self, state):
        moved = state.place + state.speed
        return Phase(moved, state.speed + self.layers[0](moved))

    def inverse(self, state):
        speed = state.speed - self.layers[0](state.place)
        return Phase(state.place - speed, speed)


def test_a_named_tuple_as_state(anchors) -> None:
    net = InvertibleSequential(*[Kicked(2) for _ in range(10)], anchors=anchors)
    net.double()
    state = Phase(sample(2, requires_grad=True), sample(2, requires_grad=True))

    def gradients():
        end = net(state)
        loss = weighed(end.place) + weighed(end.speed * end.place)
        return torch.autograd.grad(loss, [*state, *parameters(net)])

    assert_all_equal(*both(net, gradients))


class Indexed(VolumePreserving):
    """A layer whose state carries integers along, which turn by one a layer."""

    def __init__(self, channels: int):
        super().__init__()
        self.force = Conditioner(channels, channels)

    def forward(self, state, *context):
        x, index = state
        return x + self.force(index.to(x.dtype), *context), index.roll(1, -1)

    def inverse(self, state, *context):
        x, index = state
        index = index.roll(-1, -1)
        return x - self.force(index.to(x.dtype), *context), index


def test_tuple_states_with_integers(anchors) -> None:
    net = InvertibleSequential(*[Indexed(2) for _ in range(10)], anchors=anchors)
    net.double()
    x, index = sample(2, requires_grad=True), torch.randint(9, (2, 2, 5, 4))

    def gradients():
        y, last = net((x, index))
        assert torch.equal(last, index.roll(10, -1))
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


class Named(nn.Module):
    """A conditioner that finds what it needs in a dictionary and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Conditioner(2, 2)

    def forward(self, x, named, listed):
        return self.inner(x, named["scale"], *listed) * named["power"]


def named(anchors: int, **options) -> InvertibleSequential:
    layers = [AdditiveCoupling(Named()) for _ in range(10)]
    return alternating(layers, anchors=anchors, **options).double()


def test_contexts_in_dictionaries_and_lists(anchors) -> None:
    net, x, raw = named(anchors), sample(requires_grad=True), sample(1)
    raw.requires_grad_()

    def gradients():
        context = raw.sin()
        y = net(x, {"scale": context, "power": 0.5}, [raw, context * raw])
        return torch.autograd.grad(weighed(y), [x, raw, *parameters(net)])

    assert_all_equal(*both(net, gradients))

    def second_order():
        context = raw.sin()
        y = net(x, {"scale": context, "power": 0.5}, [raw])
        inputs = [x, raw, *parameters(net)]
        first = torch.autograd.grad(weighed(y), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    assert_all_equal(*both(net, second_order))


@pytest.mark.parametrize("guard", ["raise", None])
def test_a_context_in_a_list_that_changes_before_backward(anchors, guard) -> None:
    net, context = named(anchors, guard=guard), sample(1)
    loss = net(sample(), {"scale": sample(1), "power": 0.5}, [context]).sum()
    context.mul_(2)
    with pytest.raises(RuntimeError, match=r"the context of layer \d+ .* in place"):
        loss.backward()


def test_empty_batches(anchors) -> None:
    net, x = stack(anchors), sample(batch=0, requires_grad=True)

    def gradients():
        return torch.autograd.grad(net(x).sum(), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_states(anchors) -> None:
    layers = [AdditiveCoupling(Conditioner(2, 2, dims=0)) for _ in range(10)]
    net = alternating(layers, anchors=anchors).to(torch.complex128)
    x = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)

    def gradients():
        return torch.autograd.grad(net(x).abs().square().sum(), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_channels_last_and_strided_inputs(anchors) -> None:
    net = stack(anchors)
    wide = sample(6).to(memory_format=torch.channels_last).requires_grad_()

    def gradients():
        y = net(wide[:, ::2].repeat_interleave(2, 1)[:, 1:5])
        return torch.autograd.grad(weighed(y), [wide, *parameters(net)])

    assert_all_equal(*both(net, gradients))
