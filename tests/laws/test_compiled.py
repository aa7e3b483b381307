"""Compiled, every layer gives the gradients of plain autograd, or refuses."""

import pytest
import torch

from invtorch import InvertibleSequential
from tests.compilation import COMPILING, compiled
from tests.parts import Reverse
from tests.registry import MAKERS, PAIR_MAKERS
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = [*COMPILING, pytest.mark.slow]
ALL = MAKERS | PAIR_MAKERS
# what a graph cannot hold: an iteration that ends by its values
REFUSED = {"ResidualFlow"}
IN_A_CHAIN = 3  # what a graph costs besides its layers is paid once for three


def chains(makers) -> list[tuple[str, ...]]:
    """Return the names of layers, a few at a time."""
    names = sorted(makers.keys() - REFUSED)
    return [tuple(names[i : i + IN_A_CHAIN]) for i in range(0, len(names), IN_A_CHAIN)]


def network(names) -> InvertibleSequential:
    """Put a layer in front of those that are tested: its input is not rebuilt."""
    pairs = set(names) <= PAIR_MAKERS.keys()
    first = ALL["a module with a tuple state"](3, 1) if pairs else Reverse()
    layers = [ALL[name](3, 1) for name in names]
    return InvertibleSequential(first, *layers, anchors=0).double()


def loss_and_inputs(net, names):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    state = (x, x.detach().cos()) if set(names) <= PAIR_MAKERS.keys() else x
    return lambda: weighed(net(state)), [x, *net.parameters()]


@pytest.mark.parametrize(
    "names", [*chains(MAKERS), *chains(PAIR_MAKERS)], ids=", ".join
)
def test_compiled(names) -> None:
    net = network(names)
    loss, inputs = loss_and_inputs(net, names)
    net.memory = "store"
    expected = torch.autograd.grad(loss(), inputs, allow_unused=True)
    net.memory = "invert"
    found = torch.autograd.grad(compiled(loss)(), inputs, allow_unused=True)
    assert_all_equal(found, expected)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name) -> None:
    loss, inputs = loss_and_inputs(network([name]), [name])
    with pytest.raises(RuntimeError):
        torch.autograd.grad(compiled(loss)(), inputs, allow_unused=True)
