"""Multiplication of the channels with any matrix, as a product of triangles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import (
    check_axis,
    check_channels,
    check_count,
    check_generator,
    check_real_log_det,
)
from invtorch.linalg import (
    known_product,
    mix_channels,
    precise_dtype,
    random_orthogonal,
    rebuilt,
)
from invtorch.module import InvertibleModule
from invtorch.precision import no_autocast


class LU1x1(InvertibleModule):
    r"""Mix the channels at every position with a matrix given by its LU factors (Glow).

    $$ W = P L \bigl(U + \operatorname{diag}(\sigma \odot e^{s})\bigr), \qquad
       \ln \lvert \det \partial y / \partial x \rvert = n \sum_i s_i $$

    $L$ is lower triangular with ones on its diagonal, $U$ is strictly upper triangular,
    and $n$ is the number of positions. The permutation $P$ and the signs $\sigma$ are
    fixed, and part of the state dict. $W$ begins as a random orthogonal matrix. The
    inverse solves two triangular systems, in double precision, for the matrix and not
    for every position; it costs as much as the forward pass. $W$ cannot become
    singular, but its condition is not bounded: prefer `Orthogonal1x1` where the volume
    need not change.

    Args:
        channels: Number of channels.
        dim: The axis of the channels; -1 for sequences and vectors.
        generator: Draws the first matrix.

    Shape:
        `(batch, channels, *space)`, any number of spatial axes, or with the channels on
        axis `dim`; the output has the same shape.

    Raises:
        TypeError: If the state has an integer dtype.
        ValueError: If the state has other channels, or the parameters are complex and
            the state is real.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> mix = LU1x1(4)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(mix.inverse(mix(x)), x, atol=1e-5)
        True

    References:
        Kingma and Dhariwal, *Glow: Generative flow with invertible 1x1 convolutions*,
        2018. arXiv:1807.03039
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_axis(dim)
        check_generator(generator)
        start = random_orthogonal(channels, channels, generator=generator)
        P, L, U = torch.linalg.lu(start.double())
        dtype = torch.get_default_dtype()
        diagonal = U.diagonal()
        self.lower = nn.Parameter(L.tril(-1).to(dtype))
        self.upper = nn.Parameter(U.triu(1).to(dtype))
        self.log_diagonal = nn.Parameter(diagonal.abs().log().to(dtype))
        self.register_buffer("signs", diagonal.sign().to(dtype))
        self.register_buffer("permutation", P.argmax(1))
        self.channels = channels
        self.dim = dim

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Return $Wx$ at every position."""
        return mix_channels(self._matrix(x), x, self.dim)

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Return $W^{-1} y$ at every position."""
        return mix_channels(self._inverse_matrix(y), y, self.dim)

    def forward_and_log_det(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        r"""Return `y` and $n \sum_i s_i$."""
        return self.forward(x), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        r"""Return `x` and $-n \sum_i s_i$."""
        return self.inverse(y), -self._log_det(y)

    def replay(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and return it with `y` as a function of it."""
        with torch.no_grad():
            inverse = self._inverse_matrix(y)
        x = rebuilt(inverse, y, self.dim)
        return x, known_product(y, self._matrix(y), x, self.dim)

    def replay_inverse(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and return it with `x` as a function of it."""
        with torch.no_grad():
            matrix = self._matrix(x)
        y = rebuilt(matrix, x, self.dim)
        return y, known_product(x, self._inverse_matrix(x), y, self.dim)

    def replay_and_log_det(self, y: Tensor, *_: Any) -> Any:
        """Same as `replay`, with the log-determinant."""
        x, y = self.replay(y)
        return x, (y, self._log_det(x))

    def replay_inverse_and_log_det(self, x: Tensor, *_: Any) -> Any:
        """Same as `replay_inverse`, with the log-determinant."""
        y, x = self.replay_inverse(x)
        return y, (x, -self._log_det(y))

    def extra_repr(self) -> str:
        """Show the size of the matrix, and the axis."""
        return f"channels={self.channels}, dim={self.dim}"

    def _factors(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_channels(state, self.channels, self, self.dim)
        dtype = precise_dtype(self.lower, state)
        identity = torch.eye(self.channels, dtype=dtype, device=self.lower.device)
        signs: Tensor = self.get_buffer("signs")
        diagonal = signs.to(dtype) * self.log_diagonal.to(dtype).exp()
        L = self.lower.to(dtype).tril(-1) + identity
        U = self.upper.to(dtype).triu(1) + diagonal.diag()
        return L, U, self.get_buffer("permutation")

    def _matrix(self, state: Tensor) -> Tensor:
        L, U, order = self._factors(state)
        with no_autocast(state):
            return (L @ U)[order]

    def _inverse_matrix(self, state: Tensor) -> Tensor:
        L, U, order = self._factors(state)
        with no_autocast(state):
            identity = torch.eye(self.channels, dtype=L.dtype, device=L.device)
            half = torch.linalg.solve_triangular(
                L, identity, upper=False, unitriangular=True
            )
            inverse: Tensor = torch.linalg.solve_triangular(U, half, upper=True)
        return inverse[:, order]

    def _log_det(self, state: Tensor) -> Tensor:
        check_real_log_det(self, state)
        positions = state[:1].numel() // self.channels
        log_det = positions * self.log_diagonal.to(state.dtype).sum()
        return log_det.expand(len(state))
