"""Orthogonal coupling: an additive coupling in a learned orthogonal basis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import (
    check_axis,
    check_channels,
    check_conditioner,
    check_count,
    check_returned,
)
from invtorch.couplings.conditioning import in_its_precision
from invtorch.keywords import keywords_of
from invtorch.linalg import (
    householder_product,
    householder_vectors,
    matrix_gradient,
    mix_channels,
    orthogonal_matrix,
    orthogonal_weight,
    random_orthogonal,
)
from invtorch.module import VolumePreserving
from invtorch.recording import Context
from invtorch.replay import ShiftGraph, Whole

HOUSEHOLDER = "householder"


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
        map: How $U$ is parametrized: `"householder"` for reflections, or `"cayley"` or
            `"matrix_exp"` as in `Orthogonal1x1`.
        dim: The axis of the channels; -1 for sequences and vectors.

    Shape:
        `(batch, channels, *space)`, any number of spatial axes, or with the channels on
        axis `dim`; the output has the same shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, or the state has an integer
            dtype.
        ValueError: If there are fewer than 2 channels, `reflections` is not between 1
            and `channels` or given with another map, the state has another number of
            channels or is real while $U$ is complex, or the conditioner returns a
            tensor of the wrong shape.

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
        map: str = HOUSEHOLDER,  # noqa: A002
        dim: int = 1,
    ) -> None:
        super().__init__()
        check_count("channels", channels, least=2)
        check_axis(dim)
        sizes = channels // 2, channels - channels // 2
        check_conditioner(conditioner, *(sizes if dim == 1 else (None, None)))
        self.conditioner = conditioner
        if map == HOUSEHOLDER:
            count = min(3, channels) if reflections is None else reflections
            self.vectors = householder_vectors(channels, count)
        else:
            check_no_reflections(map, reflections)
            self.basis = orthogonal_matrix(random_orthogonal(channels, channels), map)
        self.channels = channels
        self.map = map
        self.dim = dim

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        r"""Return $x + U_2^\top G(U_1 x)$."""
        return x + self._mapped_shift(x, Context(context, named))

    def inverse(self, y: Tensor, *context: Any, **named: Any) -> Tensor:
        r"""Return $y - U_2^\top G(U_1 y)$."""
        return y - self._mapped_shift(y, Context(context, named))

    def replay(self, y: Tensor, *context: Any, **named: Any) -> ShiftGraph:
        """Rebuild `x` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(y, Context(context, named), sign=1)

    def replay_inverse(self, x: Tensor, *context: Any, **named: Any) -> ShiftGraph:
        """Rebuild `y` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(x, Context(context, named), sign=-1)

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.conditioner)

    def extra_repr(self) -> str:
        """Show the size of the orthogonal matrix, and how it is parametrized."""
        kind = f"map={self.map!r}"
        if self.map == HOUSEHOLDER:
            kind = f"reflections={len(self.vectors)}"
        dim = "" if self.dim == 1 else f", dim={self.dim}"
        return f"channels={self.channels}, {kind}{dim}"

    def _mapped_shift(self, state: Tensor, context: Context) -> Tensor:
        U1, U2 = self._rows(state)
        shift = self._shift(mix_channels(U1, state, self.dim), context)
        return mix_channels(U2.mH, shift, self.dim)

    def _replay(self, output: Tensor, context: Context, sign: int) -> ShiftGraph:
        U1, U2 = self._rows(output)
        x = output.data.requires_grad_()
        projected = _Projected.apply(output, x, U1, self.dim)
        shape = [*x.shape]
        shape[self.dim] = len(U1)
        if [*projected.shape] != shape:  # a view only where it is one in `forward`
            projected = projected.reshape(shape)
        shift = mix_channels(U2.mH, self._shift(projected, context), self.dim)
        # the graph does not need the values of the shift: x is written over them
        state = torch.sub(output.detach(), shift.data, alpha=sign, out=shift.data)
        x.data = state
        return ShiftGraph.of(shift, state, x, Whole(), sign)

    def _rows(self, state: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(state, self.channels, self, self.dim)
        if self.map == HOUSEHOLDER:
            matrix = householder_product(self.vectors, state)
        else:
            matrix = orthogonal_weight(self.basis, state)
        first, second = matrix.tensor_split((self.channels // 2,))
        return first, second

    def _shift(self, projected: Tensor, context: Context) -> Tensor:
        shift: Tensor = in_its_precision(self.conditioner, projected, context)
        shape = list(projected.shape)
        shape[self.dim] = self.channels - self.channels // 2
        check_returned(type(self.conditioner).__name__, shift, tuple(shape), projected)
        return shift.to(projected.dtype)


def check_no_reflections(kind: str, reflections: int | None) -> None:
    """Refuse a number of reflections for a matrix that is no product of them.

    Raises:
        ValueError: If a number is given.
    """
    if reflections is not None:
        raise ValueError(
            f"reflections is {reflections}, but map={kind!r} has none: leave it out "
            f"or use map={HOUSEHOLDER!r}"
        )


class _Projected(torch.autograd.Function):
    r"""The value $U_1 y$, with the derivative of $U_1 x$.

    $U_1 y = U_1 x$, so $G$ can be evaluated before $x$ is known. The gradient of $U_1$
    depends on $x$. The values of `state` become $x$ between the evaluation of $G$
    and the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, state: Tensor, U1: Tensor, dim: int
    ) -> Tensor:
        ctx.state, ctx.U1, ctx.dim = state, U1, dim
        # one axis of space: then the result is no view, and the conditioner may write
        # on what is made of it
        if dim == 1 and output.ndim > 3:
            output = output.flatten(2)
        return mix_channels(U1, output, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        state, U1, dim = ctx.state.detach(), ctx.U1, ctx.dim
        _, x_needed, matrix_needed, _ = ctx.needs_input_grad
        return (
            None,
            mix_channels(U1.mH, grad, dim).reshape(state.shape) if x_needed else None,
            matrix_gradient(U1, grad, state, dim) if matrix_needed else None,
            None,
        )
