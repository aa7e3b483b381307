"""Hooks of the deprecated kind see a node of the graph, which a replay has not."""

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling, InvertibleSequential, WithoutContext
from tests.parts import Conditioner
from tests.stacks import sample


def additive() -> AdditiveCoupling:
    return AdditiveCoupling(Conditioner(2, 2))


OWNERS = {
    "the container": lambda net: net,
    "a layer": lambda net: net[0],
    "an inverse view": lambda net: net[1],
    "WithoutContext": lambda net: net[2],
    "a nested container": lambda net: net[3],
    "a nested layer": lambda net: net[3][0],
}


# PyTorch says so where it calls them
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("owner", sorted(OWNERS))
@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_they_are_refused_unless_all_is_stored(owner, memory) -> None:
    inner = InvertibleSequential(additive())
    layers = additive(), additive().inv, WithoutContext(additive()), inner
    net = InvertibleSequential(*layers, anchors=0, memory=memory).double()
    x = sample(requires_grad=True)
    module: nn.Module = OWNERS[owner](net)
    module.register_backward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="use `register_full_backward_hook`"):
        net(x)
    with torch.no_grad():
        net(x)
    net.memory = "store"
    net(x).sum().backward()
