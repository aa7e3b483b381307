"""A stack deeper than its anchors, and its comparison with plain autograd."""

import contextlib
import threading

import torch
from torch import nn
from torch.autograd import grad

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    WithoutContext,
)
from tests.parts import Conditioner, Reverse, known
from tests.strategies import weighed

DEPTH = 12


def stack(anchors: int, dropout: float = 0.0, depth: int = 10):
    """Return couplings of both kinds, half of them with derivatives that are known."""
    layers = []
    for i in range(depth):
        closed_form = i % 4 in (1, 2)
        conditioner = known(2, 2) if closed_form else Conditioner(2, 2, dropout=dropout)
        layer = (
            OrthogonalCoupling(conditioner, channels=4)
            if i % 2
            else AdditiveCoupling(conditioner)
        )
        layers.append(WithoutContext(layer) if closed_form else layer)
    return InvertibleSequential(*layers, anchors=anchors).double()


def couplings(net):
    """Return the couplings of a stack, without what withholds the context."""
    return [getattr(layer, "module", layer) for layer in net]


def _coupling(i: int, conditioner: nn.Module, half: int) -> InvertibleModule:
    if i % 2:
        return AdditiveCoupling(conditioner)
    return OrthogonalCoupling(conditioner, channels=2 * half)


def gated(half: int) -> nn.Module:
    return GatedResidualBlock(half, half, hidden=3, stride=2)


def chained(half: int) -> nn.Module:
    return known(half, half)


def closed_form_network(
    anchors: int, block=gated, half: int = 2
) -> InvertibleSequential:
    """Return couplings of both kinds whose derivatives are all known."""
    layers = [_coupling(i, block(half), half) for i in range(10)]
    return InvertibleSequential(*layers, anchors=anchors).double()


def alternating(layers, **options):
    """Return a container of `layers` with the channels turned around before each."""
    members = [member for layer in layers for member in (Reverse(), layer)]
    return InvertibleSequential(*members, **options)


def mixed(conditioner, anchors: int) -> InvertibleSequential:
    """Couplings between channels that are mixed, deeper than the anchors."""
    torch.manual_seed(0)
    layers = []
    for _ in range(DEPTH):
        layers += [AdditiveCoupling(conditioner()), Householder1x1(4)]
    return InvertibleSequential(*layers, anchors=anchors).double()


def sample(channels: int = 4, batch: int = 2, **options):
    return torch.randn(batch, channels, 5, 4, dtype=torch.float64, **options)


def gradients_of(net, x):
    """Return what computes the gradients of an input and of what is trained."""

    def gradients():
        tensors = [x, *(p for p in net.parameters() if p.requires_grad)]
        return grad(weighed(net(x)), tensors, allow_unused=True)

    return gradients


def both(net, function):
    """Return what `function` gives with memory saving and with plain autograd."""
    results = []
    for net.memory in ("invert", "store"):
        torch.manual_seed(3)
        net.zero_grad()
        results.append(function())
    return results


def parameters(net):
    return list(net.parameters())


@contextlib.contextmanager
def another_thread(lives: bool = True):
    """Let another thread live, which waits: the engine cannot know that it does."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    if lives:
        thread.start()
    try:
        yield
    finally:
        end.set()
        if lives:
            thread.join()
