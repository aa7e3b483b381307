"""The networks that are measured, and how each contender runs them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from invtorch import (
    AdditiveCoupling,
    Conjugation,
    GatedResidualBlock,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
)

STRIDES = (1, 2, 4, 8)


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


Contender = Callable[[InvertibleSequential, Tensor], Tensor]


def plain(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with plain autograd."""
    net.memory = "store"
    return net(x)  # type: ignore[no-any-return]


def checkpointed(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with `torch.utils.checkpoint` around every layer."""
    net.memory = "store"
    for layer in net:
        x = checkpoint(layer, x, use_reentrant=False)
    return x


def inverted(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with pure inversion."""
    net.memory, net.anchors = "invert", 0
    return net(x)  # type: ignore[no-any-return]


def anchored(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with this library's default: inversion and eight anchors."""
    net.memory, net.anchors = "invert", 8
    return net(x)  # type: ignore[no-any-return]


CONTENDERS: dict[str, Contender] = {
    "plain autograd": plain,
    "checkpoint every layer": checkpointed,
    "invtorch, 8 anchors (default)": anchored,
    "invtorch, anchors=0": inverted,
}


def step(net: InvertibleSequential, x: Tensor, contender: Contender) -> None:
    """Make one training step, without the optimizer."""
    contender(net, x).square().mean().backward()


def clear(net: nn.Module) -> None:
    """Let the gradients be zeros that exist, so that a step adds to them."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
