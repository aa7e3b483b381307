"""The networks that are measured."""

from collections.abc import Callable

import torch
from torch import nn

from invtorch import (
    AdditiveCoupling,
    Conjugation,
    GatedResidualBlock,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
)

STRIDES = (1, 2, 4, 8)
Maker = Callable[[int, int, int], InvertibleSequential]  # channels, hidden, depth


def block(channels: int, hidden: int, index: int) -> GatedResidualBlock:
    """Return the paper's residual block, its stride going round 1, 2, 4, 8."""
    half = channels // 2
    return GatedResidualBlock(
        half, channels - half, hidden=hidden, stride=STRIDES[index % len(STRIDES)]
    )


def algebraic(channels: int, hidden: int, depth: int) -> InvertibleSequential:
    """Return a chain of the paper's layer in the form this library ships."""
    return InvertibleSequential(
        *[
            OrthogonalCoupling(block(channels, hidden, i), channels=channels)
            for i in range(depth)
        ]
    )


def conjugated(channels: int, hidden: int, depth: int) -> InvertibleSequential:
    """Return a chain of the paper's layer as the paper writes it."""
    return InvertibleSequential(
        *[
            Conjugation(
                Householder1x1(channels), AdditiveCoupling(block(channels, hidden, i))
            )
            for i in range(depth)
        ]
    )


def additive(channels: int, hidden: int, depth: int) -> InvertibleSequential:
    """Return a chain of plain additive couplings with two convolutions each."""
    half = channels // 2

    def conditioner() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(half, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, half, 3, padding=1),
        )

    return InvertibleSequential(
        *[AdditiveCoupling(conditioner()) for _ in range(depth)]
    )


def clear(net: nn.Module) -> None:
    """Let the gradients be zeros that exist, so that a step adds to them."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
