"""Every layer may be converted to half precision, and is as exact as that."""

import copy

import pytest
import torch

from invtorch import InvertibleSequential
from tests.registry import MAKERS, fitted
from tests.strategies import weighed
from tests.tolerances import relative_error

ALLOWED = {torch.bfloat16: 0.06, torch.float16: 0.02}  # 8 and 20 eps


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
@pytest.mark.parametrize("dtype", [*ALLOWED])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_output_and_gradient(name, dtype, memory) -> None:
    torch.manual_seed(0)
    layer = MAKERS[name](4, 1)
    layer = layer.to(dtype)
    exact = InvertibleSequential(copy.deepcopy(layer).double(), memory="store")
    net = InvertibleSequential(layer, memory=memory)
    x = torch.randn(2, 4, *fitted(name, 4)).to(dtype)
    context = torch.randn(2, 1, *fitted(name, 4)).to(dtype)
    found = gradient(net, x, context)
    expected = gradient(exact, x.double(), context.double())
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert relative_error(value.double(), reference) < ALLOWED[dtype]


def gradient(net, x, context):
    x = x.clone().requires_grad_()
    y = net(x, context)
    (grad,) = torch.autograd.grad(weighed(y), x)
    return y, grad
