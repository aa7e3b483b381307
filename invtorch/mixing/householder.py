"""Multiplication of the channels with a product of reflections."""

from __future__ import annotations

from torch import Tensor

from invtorch._checks import check_axis, check_channels
from invtorch.linalg import householder_product, householder_vectors
from invtorch.mixing.unitary import UnitaryMixing


class Householder1x1(UnitaryMixing):
    r"""Mix the channels at every position with one learned orthogonal matrix.

    $$ U = H_1 H_2 \cdots H_R, \qquad H_r = I - 2\,v_r v_r^\top / (v_r^\top v_r) $$

    $U^\top U = I$ for any parameters $v_r$. The inverse is therefore $U^\top$, costs as
    much as the forward pass, and the norm of the gradient does not change.
    Complex parameters (`.to(torch.complex64)`) make $U$ unitary, for complex states.

    Args:
        channels: Number of channels $C$.
        reflections: Number of reflections $R$, between 1 and $C$.
        dim: The axis of the channels; -1 for sequences and vectors.

    Shape:
        `(batch, channels, *space)`, any number of spatial axes, or with the channels on
        axis `dim`; the output has the same shape.

    Raises:
        TypeError: If the state has an integer dtype.
        ValueError: If `reflections` is not between 1 and `channels`, or the
            parameters are complex and the state is real.

    Examples:
        >>> mix = Householder1x1(channels=4, reflections=2)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(mix.inverse(mix(x)), x, atol=1e-6)
        True

    References:
        Tomczak and Welling, *Improving variational auto-encoders using Householder
        flow*, 2016. arXiv:1611.09630
    """

    def __init__(self, channels: int, reflections: int = 3, *, dim: int = 1) -> None:
        super().__init__()
        check_axis(dim)
        self.dim = dim
        self.vectors = householder_vectors(channels, reflections)

    def extra_repr(self) -> str:
        """Show the size of the matrix, and the axis if it is not 1."""
        reflections, channels = self.vectors.shape
        dim = "" if self.dim == 1 else f", dim={self.dim}"
        return f"channels={channels}, reflections={reflections}{dim}"

    def _matrix(self, state: Tensor) -> Tensor:
        check_channels(state, self.vectors.shape[1], self, self.dim)
        return householder_product(self.vectors, state)
