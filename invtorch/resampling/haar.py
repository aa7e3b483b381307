"""The Haar wavelet transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invtorch._checks import check_product
from invtorch.resampling.blocks import Downsample, Sizes


class HaarDownsample(Downsample):
    r"""Make channels of the averages and differences of each block (Haar wavelets).

    With the entries of a block ordered as by `PixelUnshuffle`, each is multiplied with

    $$ H \otimes \cdots \otimes H, \qquad
       H = \begin{pmatrix} 1 & 1 \\ 1 & -1 \end{pmatrix} / \sqrt{2}. $$

    In two dimensions the channels that come from one are $1/2$ times the sum of the
    block, left minus right, top minus bottom, and one diagonal minus the other. The
    matrix is orthogonal, so the inverse costs the same, and the log-determinant is 0.

    Args:
        stride: 2, or 1 or 2 for each axis.
        dims: The number of spatial axes, if `stride` is one number.
        size: The spatial sizes of the input, where the strides do not divide them; see
            `PixelUnshuffle`.

    Shape:
        `(batch, channels, *space)`; the output is
        `(batch, channels * entries, *blocks)`, where a block has that many entries.

    Raises:
        TypeError: If a number is not an integer, or the state has integers.
        ValueError: If a stride is neither 1 nor 2, or the state does not fit.
        RuntimeError: If the inverse would crop a value that is not 0.

    Examples:
        >>> haar = HaarDownsample()
        >>> y = haar(torch.ones(1, 1, 2, 2))
        >>> y.flatten(), haar.inverse(y).flatten()
        (tensor([2., 0., 0., 0.]), tensor([1., 1., 1., 1.]))
    """

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        *,
        dims: int = 2,
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(stride, dims=dims, size=size)
        # signs are exact in every dtype that the module may be converted to
        signs = haar_matrix(self.stride).sign().to(torch.get_default_dtype())
        self.register_buffer("signs", signs, persistent=False)

    def _matrix(self, state: Tensor) -> Tensor:
        signs = self.get_buffer("signs")
        check_product(self, state, signs.real)
        signs = signs.real.to(state.dtype)
        return signs / math.sqrt(len(signs))


def haar_matrix(stride: Sizes) -> Tensor:
    """Return the matrix of the transform of one block, in double precision.

    Raises:
        ValueError: If a stride is neither 1 nor 2.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    H = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    for s in stride:
        if s not in (1, 2):
            raise ValueError(
                f"stride is {stride}, but Haar wavelets have strides of 1 or 2: use "
                f"several layers, or PixelUnshuffle"
            )
        matrix = torch.kron(matrix, H) if s == 2 else matrix
    return matrix
