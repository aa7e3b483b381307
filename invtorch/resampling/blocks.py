"""Blocks of neighboring positions become channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invtorch import _torch
from invtorch._checks import check_count, holds
from invtorch.module import VolumePreserving
from invtorch.precision import eps_of, no_autocast

Sizes = tuple[int, ...]


class Downsample(VolumePreserving):
    r"""Base class of layers that make channels of blocks of positions.

    A subclass defines `_matrix`, an orthogonal matrix that each block is multiplied
    with.

    Args:
        stride: The sizes of a block: one for all axes, or one for each.
        dims: The number of spatial axes, if `stride` is one number.
        size: The spatial sizes of the input, where the strides do not divide them. The
            input is then padded with zeros at the end of the axes, and the inverse
            crops it.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a stride or a size is less than 1, or their numbers do not fit.
    """

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        *,
        dims: int = 2,
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_count("dims", dims)
        self.stride = _per_axis("stride", stride, dims)
        self.size = None
        if size is not None:
            self.size = _per_axis("size", size, len(self.stride))
            if len(self.size) != len(self.stride):
                raise ValueError(
                    f"size is {self.size}, but stride is {self.stride}: give one size "
                    f"for each of the {len(self.stride)} axes"
                )

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Make channels of blocks."""
        blocks = to_blocks(self._padded(x), self.stride)
        return _product(self._matrix(x), blocks).flatten(1, 2)

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Make blocks of channels."""
        x = self._unblocked(y)
        self._check_padding(x)
        return self._cropped(x)

    def extra_repr(self) -> str:
        """Show strides, and the size of the input if it is padded."""
        size = "" if self.size is None else f", size={self.size}"
        return f"stride={self.stride}{size}"

    def _matrix(self, state: Tensor) -> Tensor | None:
        """Return the matrix, of shape `(..., entries, entries)`; `None`: the identity.

        Args:
            state: The input of the direction.
        """
        raise NotImplementedError

    def _padded(self, x: Tensor) -> Tensor:
        space, axes = tuple(x.shape[2:]), len(self.stride)
        expected = self.size or space
        if x.ndim != axes + 2 or space != expected:
            raise ValueError(
                f"a state of shape {tuple(x.shape)} does not fit {self._name()}: give "
                f"it (batch, channels, ...) with {axes} axes of space, of size "
                f"{self.size or 'any'}"
            )
        missing = [-n % s for n, s in zip(space, self.stride, strict=True)]
        if not any(missing):
            return x
        if self.size is None:
            raise ValueError(
                f"a state of shape {tuple(x.shape)} cannot be divided into blocks of "
                f"{self.stride}: crop or pad it, or give the layer size={space}, which "
                f"pads it"
            )
        return F.pad(x, [n for pad in missing[::-1] for n in (0, pad)])

    def _unblocked(self, y: Tensor) -> Tensor:
        """Make blocks of channels, with the padding."""
        entries = math.prod(self.stride)
        self._check_output(y, entries)
        blocks = y.reshape(len(y), y.shape[1] // entries, entries, *y.shape[2:])
        matrix = self._matrix(y)
        blocks = _product(None if matrix is None else matrix.mH, blocks)
        return from_blocks(blocks, self.stride)

    def _cropped(self, x: Tensor) -> Tensor:
        """Remove the padding."""
        for axis, n in enumerate(self.size or (), start=2):
            x = x.narrow(axis, 0, n)
        return x

    def _check_padding(self, x: Tensor) -> None:
        """Refuse padding that is not zero: what is cropped would be lost."""
        for axis, n in enumerate(self.size or (), start=2):
            if x.shape[axis] > n:
                border = x.narrow(axis, n, x.shape[axis] - n)
                x = x.narrow(axis, 0, n)
                self._check_border(border, x)

    def _check_border(self, border: Tensor, x: Tensor) -> None:
        if not x.numel():
            return
        # a rebuilt state has rounding errors, which a guard judges: half of the digits
        limit = math.sqrt(eps_of(x.dtype)) * x.detach().abs().amax()
        zero = (border.detach().abs() <= limit).all()
        message = (
            f"the inverse of {self._name()} crops entries that are not 0 and would be "
            f"lost: crop behind the network, and pad before it"
        )
        if torch.compiler.is_compiling():
            _torch.assert_async(zero, message)
        elif not holds(zero):
            raise RuntimeError(message)

    def _check_output(self, y: Tensor, entries: int) -> None:
        axes = len(self.stride)
        space = None
        if self.size is not None:
            space = tuple(
                -(-n // s) for n, s in zip(self.size, self.stride, strict=True)
            )
        fits = y.ndim == axes + 2 and space in (None, tuple(y.shape[2:]))
        if not fits or y.shape[1] % entries:
            raise ValueError(
                f"a state of shape {tuple(y.shape)} does not fit the inverse of "
                f"{self._name()}: it needs a multiple of {entries} channels and "
                f"{axes} axes of space, of size {space or 'any'}"
            )

    def _name(self) -> str:
        return f"{type(self).__name__}(stride={self.stride})"


def to_blocks(x: Tensor, stride: Sizes) -> Tensor:
    """Return the blocks of `x`, of shape `(batch, channels, entries, *blocks)`.

    The order of the entries is that of the axes, as in `torch.nn.PixelUnshuffle`.
    """
    axes = range(len(stride))
    counts = [n // s for n, s in zip(x.shape[2:], stride, strict=True)]
    shape = [n for pair in zip(counts, stride, strict=True) for n in pair]
    x = x.reshape(*x.shape[:2], *shape)
    inside, outside = [3 + 2 * a for a in axes], [2 + 2 * a for a in axes]
    x = x.permute(0, 1, *inside, *outside)
    return x.reshape(*x.shape[:2], math.prod(stride), *counts)


def from_blocks(blocks: Tensor, stride: Sizes) -> Tensor:
    """Return the tensor that has these blocks; it undoes `to_blocks`."""
    counts, axes = blocks.shape[3:], len(stride)
    x = blocks.reshape(*blocks.shape[:2], *stride, *counts)
    pairs = [a for axis in range(axes) for a in (2 + axes + axis, 2 + axis)]
    sizes = [n * s for n, s in zip(counts, stride, strict=True)]
    return x.permute(0, 1, *pairs).reshape(*blocks.shape[:2], *sizes)


def _product(matrix: Tensor | None, blocks: Tensor) -> Tensor:
    if matrix is None:
        return blocks
    shape = blocks.shape
    flat = blocks.reshape(*shape[:3], math.prod(shape[3:]))
    with no_autocast(blocks):
        return (matrix.to(blocks.dtype) @ flat).reshape(shape)


def _per_axis(name: str, value: int | Sequence[int], axes: int) -> Sizes:
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    for size in sizes:
        check_count(name, size)
    if not sizes:
        raise ValueError(f"{name} is {value!r}, but must have one number for each axis")
    return sizes
