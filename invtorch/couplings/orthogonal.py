"""Orthogonal coupling: an additive coupling in a learned orthogonal basis."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import (
    check_channels,
    check_conditioner,
    check_count,
    check_returned,
)
from invtorch.couplings.conditioning import in_its_precision
from invtorch.linalg import (
    correlate_channels,
    householder_product,
    householder_vectors,
    mix_channels,
)
from invtorch.module import VolumePreserving
from invtorch.replay import ShiftGraph


class OrthogonalCoupling(VolumePreserving):
    r"""Couple two halves of the channels of a learned orthogonal basis.

    The paper changes the basis, couples additively, and changes back (eq. 12 to 15):
    $x' = Ux$, $y_1' = x_1'$, $y_2' = x_2' + G(x_1'; c)$, $y = U^\top y'$. With $U_1$
    the first $\lfloor C/2 \rfloor$ rows of $U$ and $U_2$ the others, the same map is

    $$ y = x + U_2^\top G(U_1 x; c), \qquad U_1 y = U_1 x,
       \qquad x = y - U_2^\top G(U_1 y; c). $$

    The state itself is not transformed to the other basis, so there are half as many
    products with $U$, and no rounding errors from the change of basis.
    Complex parameters (`.to(torch.complex64)`) make $U$ unitary, for complex states.

    Args:
        conditioner: The network $G$, from $\lfloor C/2 \rfloor$ to $C - \lfloor C/2
            \rfloor$ channels. It takes $U_1 x$ and the context.
        channels: Number of channels $C$, at least 2.
        reflections: Number of Householder reflections in $U$; by default 3, as in the
            paper, or `channels` if they are fewer.

    Shape:
        `(batch, channels, *space)`, any number of spatial axes; the output has the same
        shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, or the state has an integer
            dtype.
        ValueError: If there are fewer than 2 channels, `reflections` is not between 1
            and `channels`, the state has another number of channels or is real while
            the reflections are complex, or the conditioner returns a tensor of the
            wrong shape.

    Examples:
        >>> from torch import nn
        >>> layer = OrthogonalCoupling(nn.Conv2d(2, 2, 3, padding=1), channels=4)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True

    References:
        Putzky and Welling, *Invert to learn to invert*, 2019, section 2.2.
        arXiv:1911.10914
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        channels: int,
        reflections: int | None = None,
    ) -> None:
        super().__init__()
        check_count("channels", channels, least=2)
        if reflections is None:
            reflections = min(3, channels)
        check_conditioner(conditioner, channels // 2, channels - channels // 2)
        self.conditioner = conditioner
        self.vectors = householder_vectors(channels, reflections)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        r"""Return $x + U_2^\top G(U_1 x)$."""
        U1, U2 = self._rows(x)
        return x + mix_channels(U2.mH, self._shift(mix_channels(U1, x), context))

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        r"""Return $y - U_2^\top G(U_1 y)$."""
        U1, U2 = self._rows(y)
        return y - mix_channels(U2.mH, self._shift(mix_channels(U1, y), context))

    def replay(self, y: Tensor, *context: Any) -> ShiftGraph:
        """Rebuild `x` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(y, context, sign=1)

    def replay_inverse(self, x: Tensor, *context: Any) -> ShiftGraph:
        """Rebuild `y` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(x, context, sign=-1)

    def extra_repr(self) -> str:
        """Show the size of the orthogonal matrix."""
        reflections, channels = self.vectors.shape
        return f"channels={channels}, reflections={reflections}"

    def _replay(
        self, output: Tensor, context: tuple[Any, ...], sign: int
    ) -> ShiftGraph:
        U1, U2 = self._rows(output)
        x = output.data.requires_grad_()
        projected = _Projected.apply(output, x, U1)
        projected = projected.reshape(len(x), len(U1), *x.shape[2:])
        shift = mix_channels(U2.mH, self._shift(projected, context))
        # the graph does not need the values of the shift: x is written over them
        state = torch.sub(output.detach(), shift.data, alpha=sign, out=shift.data)
        x.data = state
        return ShiftGraph.of(shift, state, x, 1, sign)

    def _rows(self, state: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.vectors.shape[1]
        check_channels(state, channels, self)
        matrix = householder_product(self.vectors, state)
        first, second = matrix.tensor_split((channels // 2,))
        return first, second

    def _shift(self, projected: Tensor, context: tuple[Any, ...]) -> Tensor:
        shift: Tensor = in_its_precision(self.conditioner, projected, context)
        channels = self.vectors.shape[1]
        shape = (len(projected), channels - channels // 2, *projected.shape[2:])
        check_returned(type(self.conditioner).__name__, shift, shape, projected)
        return shift.to(projected.dtype)


class _Projected(torch.autograd.Function):
    r"""The value $U_1 y$, with the derivative of $U_1 x$.

    $U_1 y = U_1 x$, so $G$ can be evaluated before $x$ is known. The gradient of $U_1$
    depends on $x$. The values of `state` become $x$ between the evaluation of $G$
    and the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, state: Tensor, U1: Tensor) -> Tensor:
        ctx.state, ctx.U1 = state, U1
        # one axis of space: then the result is no view, and the conditioner may write
        # on what is made of it
        space = math.prod(output.shape[2:])
        flat = output.reshape(*output.shape[:2], space) if output.ndim > 3 else output
        return mix_channels(U1, flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        state, U1 = ctx.state.detach(), ctx.U1
        _, x_needed, matrix_needed = ctx.needs_input_grad
        return (
            None,
            mix_channels(U1.mH, grad).reshape(state.shape) if x_needed else None,
            _matrix_gradient(U1, grad, state) if matrix_needed else None,
        )


def _matrix_gradient(matrix: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the gradient of a matrix, real if the matrix is real."""
    grad = correlate_channels(a, b)
    return grad if matrix.is_complex() else grad.real
