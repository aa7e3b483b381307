"""Gradients for states of subclasses of `Tensor` are those of the plain tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch._torch import plain_tensors
from tests.devices import ON_THE_CPU
from tests.registry import MAKERS, fitted
from tests.stacks import alternating
from tests.strategies import anchors, costly, directions, memories, weighed
from tests.subclasses import KINDS

pytestmark = ON_THE_CPU


@pytest.mark.parametrize("name", sorted(MAKERS))
@costly(6)
@given(
    st.sampled_from(sorted(KINDS)), anchors, directions, memories, st.integers(0, 2**31)
)
def test_gradients_equal_plain_autograd(
    name, kind, anchors, direction, memory, seed
) -> None:
    torch.manual_seed(seed)
    net = alternating([MAKERS[name](3, 1) for _ in range(3)], anchors=anchors).double()
    (size,) = fitted(name, 5)
    x = torch.randn(2, 3, size, dtype=torch.float64)
    context = torch.randn(2, 1, size, dtype=torch.float64)
    tensors = [p for p in net.parameters() if p.requires_grad]
    given_x = x if direction == "forward" else net(x, context).detach()

    def gradients(state, memory):
        net.memory = memory
        state = state.detach().requires_grad_()
        y = getattr(net, direction)(state, context)
        found = torch.autograd.grad(weighed(y), [state, *tensors], allow_unused=True)
        return [None if g is None else plain_tensors(g)[0] for g in found]

    expected = gradients(given_x, "store")
    try:
        gradients(KINDS[kind](given_x), "store")
    except RuntimeError:
        return  # PyTorch cannot do it either
    for one, other in zip(
        gradients(KINDS[kind](given_x), memory), expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)
