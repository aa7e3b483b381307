"""Multiplication of the channels with an orthogonal matrix of PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

from invtorch._checks import check_axis, check_channels, check_count, check_generator
from invtorch.linalg import (
    orthogonal_matrix,
    orthogonal_weight,
    random_orthogonal,
)
from invtorch.mixing.unitary import UnitaryMixing


class Orthogonal1x1(UnitaryMixing):
    r"""Mix the channels at every position with any orthogonal matrix.

    $$ y = Q B x, \qquad Q = \exp A \quad \text{or} \quad
       Q = (I + A/2)^{-1} (I - A/2), \qquad A^\top = -A $$

    The parametrization is that of `torch.nn.utils.parametrizations.orthogonal`. $B$ is
    a random orthogonal matrix that is not trained. In contrast to `Householder1x1` with
    few reflections, all rotations can be learned; each call computes an exponential
    or solves a linear system of the size of the matrix. The inverse is $(QB)^\top$.
    Complex parameters make the matrix unitary, for complex states.

    Args:
        channels: Number of channels.
        map: How $Q$ is computed: `"matrix_exp"`, or `"cayley"`, which is faster.
        dim: The axis of the channels; -1 for sequences and vectors.
        generator: Draws $B$.

    Shape:
        `(batch, channels, *space)`, any number of spatial axes, or with the channels on
        axis `dim`; the output has the same shape.

    Raises:
        TypeError: If the state has an integer dtype.
        ValueError: If `map` is unknown, the state has other channels, or the parameters
            are complex and the state is real.

    Examples:
        >>> mix = Orthogonal1x1(4, map="cayley")
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(mix.inverse(mix(x)), x, atol=1e-6)
        True

    References:
        Lezcano-Casado, *Trivializations for gradient-based optimization on manifolds*,
        2019. arXiv:1909.09501
    """

    def __init__(
        self,
        channels: int,
        *,
        map: str = "matrix_exp",  # noqa: A002
        dim: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_axis(dim)
        check_generator(generator)
        start = random_orthogonal(channels, channels, generator=generator)
        self.matrix = orthogonal_matrix(start, map)
        self.channels = channels
        self.map = map
        self.dim = dim

    def extra_repr(self) -> str:
        """Show the size of the matrix, the map and the axis."""
        return f"channels={self.channels}, map={self.map!r}, dim={self.dim}"

    def _matrix(self, state: Tensor) -> Tensor:
        check_channels(state, self.channels, self, self.dim)
        return orthogonal_weight(self.matrix, state)
