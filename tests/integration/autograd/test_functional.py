"""Functional calls and the transforms of `torch.func`."""

import pytest
import torch

from tests.stacks import both, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def test_functional_call_with_the_backward_outside(anchors) -> None:
    net, x = stack(anchors), sample()

    def gradients():
        torch.manual_seed(0)
        others = {k: torch.randn_like(v) / 3 for k, v in net.named_parameters()}
        leaves = [v.requires_grad_() for v in others.values()]
        doubled = {k: v * 2 for k, v in others.items()}
        y = torch.func.functional_call(net, doubled, (x,))
        return torch.autograd.grad(weighed(y), leaves)

    assert_all_equal(*both(net, gradients))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_func_transforms(anchors) -> None:
    net, x = stack(anchors), sample()
    tangent = sample()
    values = {k: v.detach() for k, v in net.named_parameters()}

    def loss(values, x):
        return weighed(torch.func.functional_call(net, values, (x[None],)))

    def transforms():
        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
        jacobian = torch.func.jacrev(net)(x[:1])
        return [*per_sample.values(), jacobian, *torch.func.jvp(net, (x,), (tangent,))]

    assert_all_equal(*both(net, transforms))
