"""What is frozen or trained between forward and backward counts from the next pass on.

A graph holds which tensors need a gradient when it is made: freezing a parameter later,
or training it, changes nothing in the backward pass of that graph. A replay makes the
graph again, and must not see the change either.
"""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleSequential,
    WithoutContext,
)
from tests.parts import Conditioner, Reverse, Scale, known
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


class Gated(Conditioner):
    """A conditioner with operations on parameters alone, which make nodes too."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.log_gate = nn.Parameter(torch.randn(outputs, 1, 1))

    def forward(self, x, *context):
        return super().forward(x, *context) * self.log_gate.exp().softmax(0)


def network(seed: int, anchors: int) -> InvertibleSequential:
    torch.manual_seed(seed)
    layers = [AdditiveCoupling(Gated(2, 2)), Scale(4), Householder1x1(4), Reverse()]
    layers += [AdditiveCoupling(Conditioner(2, 2)), Reverse()]
    layers += [WithoutContext(AdditiveCoupling(known(2, 2))), Reverse()]
    layers += [AdditiveCoupling(Gated(2, 2))]
    return InvertibleSequential(*layers, anchors=anchors).double()


def run(net, memory: str, trained, later, with_context: bool, again: bool):
    """Return what two passes accumulate, between which parameters change sides."""
    net = copy.deepcopy(net)
    net.memory = memory
    torch.manual_seed(1)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, 1, 5, 4, dtype=torch.float64, requires_grad=trained[0])
    parameters, context = [*net.parameters()], [c] if with_context else []
    results = []
    for flags, after in ((trained, later), (later, trained)):
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
        y = net(x, *context)
        for p, flag in zip(parameters, after, strict=True):
            p.requires_grad_(flag)
        c.requires_grad_(after[0])
        for _ in range(1 + again):
            weighed(y).backward(retain_graph=again)
        results += [y.detach(), x.grad, c.grad, *(p.grad for p in parameters)]
        for tensor in (x, c, *parameters):
            tensor.grad = None
    return results


COUNT = len([*network(0, 0).parameters()])
flags = st.lists(st.booleans(), min_size=COUNT, max_size=COUNT)


@given(
    st.integers(0, 2**31),
    st.sampled_from(["invert", "checkpoint"]),
    st.sampled_from([0, 3, 8]),
    flags,
    flags,
    st.booleans(),
    st.booleans(),
)
def test_gradients_are_those_that_the_forward_pass_asked_for(
    seed, memory, anchors, trained, later, with_context, again
) -> None:
    net, drawn = network(seed, anchors), (trained, later, with_context, again)
    assert_all_equal(run(net, memory, *drawn), run(net, "store", *drawn))
