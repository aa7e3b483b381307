"""A layer of others whose replay returns other values than its forward pass is refused.

Its inverse may be right all the same: only the evaluation from the rebuilt input shows
what a call has changed, in a list for instance, whose content is not restored.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import AdditiveCoupling, DriftError, InvertibleSequential
from invtorch.module import InvertibleModule
from tests.parts import Conditioner, Reverse
from tests.strategies import network_seeds, weighed
from tests.tolerances import assert_all_equal


class Counts(InvertibleModule):
    """It multiplies by a number that every call of `forward` changes, and no other."""

    def __init__(self, kind: str, step: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.kind, self.step = kind, step
        self.calls: list[None] = []
        self.numbers = {"calls": 0}
        self.iterator = itertools.count()
        self.last = [0]

    def count(self) -> int:
        if self.kind == "list":
            self.calls.append(None)
            return len(self.calls)
        if self.kind == "dictionary":
            self.numbers["calls"] += 1
            return self.numbers["calls"]
        return next(self.iterator)

    def factor(self) -> torch.Tensor:
        return self.weight * (1 + self.step * self.last[0])

    def forward(self, x, *_):
        self.last[0] = self.count()
        return x * self.factor()

    def inverse(self, y, *_):
        return y / self.factor()


def gradients(net, x):
    return torch.autograd.grad(weighed(net(x)), [x, *net.parameters()])


@given(
    st.sampled_from(["list", "dictionary", "iterator"]),
    st.floats(-6, 0).map(lambda exponent: 10.0**exponent) | st.just(0.0),
    st.integers(0, 3),
    network_seeds,
)
def test_it_is_refused_or_right(kind, step, place, seed) -> None:
    torch.manual_seed(seed)
    layers = [AdditiveCoupling(Conditioner(2, 2)), Reverse()]
    layers.append(AdditiveCoupling(Conditioner(2, 2)))
    layers.insert(place, Counts(kind, step))
    net = InvertibleSequential(*layers, anchors=0).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    if step and place:  # the input of the first layer is kept, and its output compared
        with pytest.raises(
            DriftError, match=rf"layer {place} \(Counts\), evaluated ag"
        ):
            gradients(net, x)
    elif not step:
        found = gradients(net, x)
        net.memory = "store"
        assert_all_equal(found, gradients(net, x))
