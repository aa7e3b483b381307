"""`is_grads_batched=True` gives what one gradient after another gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    Glow1x1,
    Householder1x1,
    InvertibleSequential,
    LU1x1,
    Orthogonal1x1,
    OrthogonalCoupling,
    ReversibleBlock,
)
from tests.registry import MAKERS, fitted
from tests.stacks import alternating
from tests.strategies import anchors, costly, directions, memories

VECTORS = {
    "AdditiveCoupling": lambda dim: AdditiveCoupling(nn.Linear(2, 2), dim=dim),
    "AffineCoupling": lambda dim: AffineCoupling(nn.Linear(2, 4), dim=dim),
    "ReversibleBlock": lambda dim: ReversibleBlock(
        nn.Linear(2, 2), nn.Linear(2, 2), dim=dim
    ),
    "OrthogonalCoupling": lambda dim: OrthogonalCoupling(
        nn.Linear(2, 2), channels=4, dim=dim
    ),
    "OrthogonalCoupling, cayley": lambda dim: OrthogonalCoupling(
        nn.Linear(2, 2), channels=4, map="cayley", dim=dim
    ),
    "Householder1x1": lambda dim: Householder1x1(4, dim=dim),
    "LU1x1": lambda dim: LU1x1(4, dim=dim),
    "Glow1x1": lambda dim: Glow1x1(4, dim=dim),
    "Orthogonal1x1": lambda dim: Orthogonal1x1(4, dim=dim),
}


def assert_as_one_by_one(net, x, context, direction, memory, count) -> None:
    x = x if direction == "forward" else net(x, *context).detach()
    x.requires_grad_()
    tensors = [x, *(p for p in net.parameters() if p.requires_grad)]

    def output(memory):
        net.memory = memory
        return getattr(net, direction)(x, *context)

    y = output("store")
    given = torch.randn(count, *y.shape, dtype=y.dtype)
    options = {"retain_graph": True, "materialize_grads": True}
    alone = [torch.autograd.grad(y, tensors, one, **options) for one in given]
    options["is_grads_batched"] = True
    try:
        torch.autograd.grad(output("store"), tensors, given, **options)
    except RuntimeError:
        return  # PyTorch cannot do it either
    together = torch.autograd.grad(output(memory), tensors, given, **options)
    expected = map(torch.stack, zip(*alone, strict=True))
    for one, other in zip(together, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", sorted(VECTORS))
@given(st.integers(0, 2), anchors, directions, memories, st.integers(1, 3), st.data())
def test_of_vectors(name, axes, anchors, direction, memory, count, data) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    layers = [VECTORS[name](-1) for _ in range(3)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = torch.randn(3, *[2] * axes, 4, dtype=torch.float64)
    assert_as_one_by_one(net, x, (), direction, memory, count)


@pytest.mark.parametrize("name", sorted(MAKERS))
@costly(4)
@given(anchors, directions, memories, st.integers(1, 3), st.integers(0, 2**31))
def test_of_all_layers(name, anchors, direction, memory, count, seed) -> None:
    torch.manual_seed(seed)
    net = alternating([MAKERS[name](3, 1) for _ in range(3)], anchors=anchors).double()
    (size,) = fitted(name, 5)
    x = torch.randn(2, 3, size, dtype=torch.float64)
    context = torch.randn(2, 1, size, dtype=torch.float64)
    assert_as_one_by_one(net, x, (context,), direction, memory, count)
