"""Compiled, every layer gives the gradients of plain autograd, or refuses."""

import pytest
import torch

from invtorch import InvertibleSequential
from tests.compilation import COMPILING, compiled
from tests.registry import MAKERS, PAIR_MAKERS, fitted
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = [*COMPILING, pytest.mark.slow]
ALL = MAKERS | PAIR_MAKERS
# what a graph cannot hold: an iteration that ends by its values, and a state whose
# number of tensors changes
REFUSED = {
    "ResidualFlow",
    "Split and Join",
    "InvertibleUNet",
    "InvertibleUNet(resampling=haar)",
    "Glow",
}


@pytest.mark.parametrize("name", sorted(ALL))
def test_compiled_or_refused(name) -> None:
    torch.manual_seed(0)
    net = InvertibleSequential(ALL[name](3, 1), ALL[name](3, 1), anchors=0).double()
    x = torch.randn(2, 3, *fitted(name, 4), dtype=torch.float64, requires_grad=True)
    state = (x, x.detach().cos()) if name in PAIR_MAKERS else x

    def loss():
        return weighed(net(state))

    inputs = [x, *net.parameters()]
    net.memory = "store"
    expected = torch.autograd.grad(loss(), inputs, allow_unused=True)
    net.memory = "invert"
    if name in REFUSED:
        with pytest.raises(RuntimeError):
            torch.autograd.grad(compiled(loss)(), inputs, allow_unused=True)
        return
    found = torch.autograd.grad(compiled(loss)(), inputs, allow_unused=True)
    assert_all_equal(found, expected)
