"""Couplings split whatever axis they are told."""

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling, AffineCoupling, InvertibleSequential
from tests.stacks import both, parameters
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal

AXES = {1: 4, 2: 6, 3: 8, -1: 8, -2: 6}  # of a state (2, 4, 6, 8)


class Pointwise(nn.Module):
    """A conditioner for any split of an axis in two, which may double it again."""

    def __init__(self, dim: int, times: int):
        super().__init__()
        self.slope, self.dim, self.times = nn.Parameter(torch.ones(())), dim, times

    def forward(self, x):
        return torch.cat([(self.slope * x).sin()] * self.times, self.dim)


MAKERS = {
    "additive": lambda dim: AdditiveCoupling(Pointwise(dim, 1), dim=dim),
    "affine": lambda dim: AffineCoupling(Pointwise(dim, 2), dim=dim),
}


@pytest.mark.parametrize("dim", AXES)
@pytest.mark.parametrize("kind", MAKERS)
def test_the_first_half_of_an_axis_is_kept(kind, dim) -> None:
    layer, x = MAKERS[kind](dim).double(), torch.rand(2, 4, 6, 8).double() + 0.1
    y, half = layer(x), AXES[dim] // 2
    assert torch.equal(y.narrow(dim, 0, half), x.narrow(dim, 0, half))
    assert (y.narrow(dim, half, half) != x.narrow(dim, half, half)).all()
    assert_equal(layer.inverse(y), x)


@pytest.mark.parametrize("dim", AXES)
@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_equal_plain_autograd_for_every_axis(kind, dim) -> None:
    layers = [MAKERS[kind](dim) for _ in range(3)]
    net = InvertibleSequential(*layers, anchors=0).double()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *parameters(net)]
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), wanted)))
