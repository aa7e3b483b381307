"""The networks that are measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from invtorch import (
    AdditiveCoupling,
    Conjugation,
    GatedResidualBlock,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
)

STRIDES = (1, 2, 4, 8)
CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
Maker = Callable[..., InvertibleSequential]  # of channels, hidden, depth, dims


class Case(NamedTuple):
    """Networks that differ in depth, and the state they are measured with.

    Attributes:
        maker: What makes one.
        channels: Channels of the state, and those inside of the conditioners.
        space: Sizes of its spatial axes.
    """

    maker: Maker
    channels: int
    space: tuple[int, ...]

    def network(self, depth: int) -> InvertibleSequential:
        """Return the network of a depth, with gradients to add to."""
        net = self.maker(self.channels, self.channels, depth, len(self.space))
        clear(net)
        return net

    def state(self) -> Tensor:
        """Draw a state."""
        return torch.randn(1, self.channels, *self.space)


def block(channels: int, hidden: int, index: int, dims: int = 2) -> GatedResidualBlock:
    """Return the paper's residual block, its stride going round 1, 2, 4, 8."""
    half, stride = channels // 2, STRIDES[index % len(STRIDES)]
    return GatedResidualBlock(
        half, channels - half, hidden=hidden, stride=stride, dims=dims
    )


class ConvolutionalBlock(nn.Module):
    """The paper's residual block by PyTorch's convolutions, as one would write it.

    It computes what `GatedResidualBlock` does, with parameters of the same names, where
    the stride divides the sizes.
    """

    def __init__(self, channels: int, hidden: int, index: int, dims: int = 2) -> None:
        super().__init__()
        half, stride = channels // 2, STRIDES[index % len(STRIDES)]
        convolution, transposed = CONVOLUTIONS[dims], TRANSPOSED[dims]
        out = 2 * (channels - half)
        self.gather = weight_norm(convolution(half, hidden, stride, stride))
        self.look = weight_norm(convolution(hidden, hidden, 3, padding=1))
        self.spread = weight_norm(transposed(hidden, out, stride, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated output."""
        h = F.relu(self.look(F.relu(self.gather(x))))
        return F.glu(self.spread(h), dim=1)


def algebraic(
    channels: int, hidden: int, depth: int, dims: int = 2
) -> InvertibleSequential:
    """Return a chain of the paper's layer in the form this library ships."""
    return InvertibleSequential(
        *[
            OrthogonalCoupling(block(channels, hidden, i, dims), channels=channels)
            for i in range(depth)
        ]
    )


def conjugated(
    channels: int,
    hidden: int,
    depth: int,
    dims: int = 2,
    block: Callable[..., nn.Module] = block,
) -> InvertibleSequential:
    """Return a chain of the paper's layer as the paper writes it."""
    return InvertibleSequential(
        *[
            Conjugation(
                Householder1x1(channels),
                AdditiveCoupling(block(channels, hidden, i, dims)),
            )
            for i in range(depth)
        ]
    )


def additive(
    channels: int, hidden: int, depth: int, dims: int = 2
) -> InvertibleSequential:
    """Return a chain of plain additive couplings with two convolutions each."""
    half, convolution = channels // 2, CONVOLUTIONS[dims]

    def conditioner() -> nn.Module:
        return nn.Sequential(
            convolution(half, hidden, 3, padding=1),
            nn.ReLU(),
            convolution(hidden, half, 3, padding=1),
        )

    return InvertibleSequential(
        *[AdditiveCoupling(conditioner()) for _ in range(depth)]
    )


def clear(net: nn.Module) -> None:
    """Let the gradients be zeros that exist, so that a step adds to them."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
