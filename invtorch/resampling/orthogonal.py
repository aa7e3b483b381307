"""Learned orthogonal downsampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invtorch._checks import (
    check_channels,
    check_count,
    check_generator,
    check_product,
)
from invtorch.linalg import orthogonal_matrix, orthogonal_weight, random_orthogonal
from invtorch.resampling.blocks import Downsample, Sizes
from invtorch.resampling.haar import haar_matrix

INITS = ("haar", "pixel_shuffle", "random")


class OrthogonalDownsample(Downsample):
    r"""Make channels of blocks with one learned orthogonal matrix for each channel.

    $$ y_c = W_c\, x_c, \qquad W_c^\top W_c = I $$

    $x_c$ are the entries of a block in channel $c$, ordered as by `PixelUnshuffle`. The
    inverse multiplies with $W_c^\top$ and costs as much as the forward pass; the
    log-determinant is 0. The matrices are parametrized as in `Orthogonal1x1`. The view
    `.inv` is learned upsampling.

    Args:
        channels: Number of channels of the input.
        stride: The sizes of a block: one for all axes, or one for each.
        dims: The number of spatial axes, if `stride` is one number.
        size: The spatial sizes of the input, where the strides do not divide them; see
            `PixelUnshuffle`.
        init: What the layer begins as: `"haar"` for `HaarDownsample`, `"pixel_shuffle"`
            for `PixelUnshuffle`, or `"random"`.
        map: `"matrix_exp"` or `"cayley"`.
        generator: Draws the matrices with `init="random"`.

    Shape:
        `(batch, channels, *space)`; the output is
        `(batch, channels * entries, *blocks)`, where a block has that many entries.

    Raises:
        TypeError: If a number is not an integer, or the state has integers.
        ValueError: If a number is less than 1, `init` or `map` is unknown, Haar
            wavelets do not have the strides, or the state does not fit.
        RuntimeError: If the inverse would crop a value that is not 0.

    Examples:
        >>> down = OrthogonalDownsample(3, stride=2)
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.allclose(down(x), HaarDownsample()(x), atol=1e-5)
        True

    References:
        Etmann et al., *iUNets: Fully invertible U-Nets with learnable up- and
        downsampling*, 2020. arXiv:2005.05220
    """

    def __init__(
        self,
        channels: int,
        stride: int | Sequence[int] = 2,
        *,
        dims: int = 2,
        size: int | Sequence[int] | None = None,
        init: str = "haar",
        map: str = "matrix_exp",  # noqa: A002
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(stride, dims=dims, size=size)
        check_count("channels", channels)
        check_generator(generator)
        start = _start(init, channels, self.stride, generator)
        self.matrix = orthogonal_matrix(start.to(torch.get_default_dtype()), map)
        self.channels = channels
        self.init = init
        self.map = map

    def extra_repr(self) -> str:
        """Show channels, strides, what the layer begins as, and the map."""
        options = f"init={self.init!r}, map={self.map!r}"
        return f"channels={self.channels}, {super().extra_repr()}, {options}"

    def _matrix(self, state: Tensor) -> Tensor:
        if state.shape[1] != self.channels * math.prod(self.stride):
            check_channels(state, self.channels, self)
        matrix = orthogonal_weight(self.matrix, state)
        check_product(self, state, matrix)
        return matrix


def _start(
    init: str, channels: int, stride: Sizes, generator: torch.Generator | None
) -> Tensor:
    entries = math.prod(stride)
    if init == "random":
        return random_orthogonal(channels, entries, entries, generator=generator)
    if init == "haar":
        return haar_matrix(stride).repeat(channels, 1, 1)
    if init == "pixel_shuffle":
        return torch.eye(entries).repeat(channels, 1, 1)
    raise ValueError(f"init is {init!r}, but must be one of {INITS}")
