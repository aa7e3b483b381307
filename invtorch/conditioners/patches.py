"""Convolutions with kernel size equal to the stride, as matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class GatherPatches(nn.Module):
    r"""Compute every position of a coarse grid from one patch of the input.

    This is a convolution whose patches do not overlap. It is computed as a matrix
    product, which is faster than the general algorithm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels on the coarse grid.
        patch: Size of a patch along each axis.

    Shape:
        From `(batch, in_channels, *space)` to `(batch, out_channels, *space / patch)`;
        `weight` is `(out_channels, in_channels, *patch)`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, patch: Sequence[int]
    ) -> None:
        super().__init__()
        self.patch = tuple(patch)
        convolution = CONVOLUTIONS[len(patch)](in_channels, out_channels, self.patch)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the coarse grid."""
        return gather(self.weight, self.bias, to_patches(x, self.patch))

    def extra_repr(self) -> str:
        """Show the numbers of channels and the patch size."""
        outputs, inputs = self.weight.shape[:2]
        return f"{inputs}, {outputs}, patch={self.patch}"


class SpreadPatches(nn.Module):
    r"""Compute one patch of the output from every position of a coarse grid.

    This is the transpose of `GatherPatches`, without a bias. The entries of the patches
    are channels of the output, so that a gate can be applied before `from_patches`.

    Args:
        in_channels: Channels on the coarse grid.
        out_channels: Channels of the patches.
        patch: Size of a patch along each axis.

    Shape:
        From `(batch, in_channels, *coarse)` to `(batch, out_channels * prod(patch),
        *coarse)`; `weight` is `(in_channels, out_channels, *patch)`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, patch: Sequence[int]
    ) -> None:
        super().__init__()
        self.patch = tuple(patch)
        transposed = TRANSPOSED[len(patch)](
            in_channels, out_channels, self.patch, bias=False
        )
        self.weight = transposed.weight
        self.register_parameter("bias", None)

    def forward(self, h: Tensor) -> Tensor:
        """Return the patches."""
        return spread(self.weight, h)

    def extra_repr(self) -> str:
        """Show the numbers of channels and the patch size."""
        inputs, outputs = self.weight.shape[:2]
        return f"{inputs}, {outputs}, patch={self.patch}"


def gather(weight: Tensor, bias: Tensor, patches: Tensor) -> Tensor:
    """Compute a coarse grid from the patches that `to_patches` returns."""
    matrix = weight.flatten(1).expand(patches.shape[0], -1, -1)
    result = torch.baddbmm(bias[:, None], matrix, patches.flatten(2))
    return result.view(*result.shape[:2], *patches.shape[2:])


def spread(weight: Tensor, h: Tensor) -> Tensor:
    """Compute the patches that `from_patches` takes, from a coarse grid."""
    # `matmul` would copy `h` to transpose it if a gradient is needed
    matrix = weight.flatten(1).mT.expand(h.shape[0], -1, -1)
    result = torch.bmm(matrix, h.flatten(2))
    return result.view(*result.shape[:2], *h.shape[2:])


def to_patches(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Rearrange the entries of each patch into channels of a coarser grid.

    From `(batch, channels, *space)` to `(batch, channels * prod(patch), *space /
    patch)`. The entries of one channel are adjacent.
    """
    if math.prod(patch) == 1:
        return x
    coarse = [n // s for n, s in zip(x.shape[2:], patch, strict=True)]
    pairs = chain.from_iterable(zip(coarse, patch, strict=True))
    last = 2 + 2 * len(patch)
    order = (0, 1, *range(3, last, 2), *range(2, last, 2))
    split = x.reshape(*x.shape[:2], *pairs).permute(order)
    return split.reshape(x.shape[0], x.shape[1] * math.prod(patch), *coarse)


def from_patches(patches: Tensor, patch: Sequence[int]) -> Tensor:
    """Invert `to_patches`."""
    if math.prod(patch) == 1:
        return patches
    dims, channels = len(patch), patches.shape[1] // math.prod(patch)
    split = patches.reshape(patches.shape[0], channels, *patch, *patches.shape[2:])
    axes = chain.from_iterable((2 + dims + i, 2 + i) for i in range(dims))
    fine = [n * s for n, s in zip(patches.shape[2:], patch, strict=True)]
    result: Tensor = split.permute(0, 1, *axes).reshape(*split.shape[:2], *fine)
    return result


def padded(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Append zeros to spatial axes whose size is not a multiple of the patch size."""
    missing = [-n % s for n, s in zip(x.shape[2:], patch, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [side for n in reversed(missing) for side in (0, n)])


def cropped(x: Tensor, space: Sequence[int]) -> Tensor:
    """Remove what `padded` appended, given the original spatial sizes."""
    for axis, size in enumerate(space, start=2):
        if x.shape[axis] != size:
            x = x.narrow(axis, 0, size)
    return x
