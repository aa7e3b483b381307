"""A stack deeper than its anchors, and its comparison with plain autograd."""

import torch

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
    WithoutContext,
)
from tests.parts import Conditioner, Reverse, known

DEPTH = 12


def stack(anchors: int, dropout: float = 0.0, depth: int = 10):
    """Return couplings of both kinds, half of them with derivatives that are known."""
    layers = []
    for i in range(depth):
        pure = i % 4 in (1, 2)
        conditioner = known(2, 2) if pure else Conditioner(2, 2, dropout=dropout)
        layer = (
            OrthogonalCoupling(conditioner, channels=4)
            if i % 2
            else AdditiveCoupling(conditioner)
        )
        layers.append(WithoutContext(layer) if pure else layer)
    return InvertibleSequential(*layers, anchors=anchors).double()


def couplings(net):
    """Return the couplings of a stack, without what withholds the context."""
    return [getattr(layer, "module", layer) for layer in net]


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
