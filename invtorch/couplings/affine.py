"""Affine coupling: one part of the state scales and shifts the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import check_conditioner, check_returned
from invtorch.couplings.conditioning import in_its_precision
from invtorch.couplings.log_scale import (
    Scale,
    checked_scale,
    log_scale,
    shows_scale,
    sum_per_sample,
)
from invtorch.couplings.partition import (
    Partition,
    Split,
    checked_partition,
    kept_and_moved,
    partition,
    shows_partition,
    unchanged_part,
)
from invtorch.keywords import keywords_of
from invtorch.module import InvertibleModule, no_log_det
from invtorch.recording import Context


class AffineCoupling(InvertibleModule):
    r"""Scale and shift one part of the channels by functions of the others.

    $$ y_1 = x_1, \qquad y_2 = s \odot x_2 + t, \qquad (a, t) = G(x_1; c) $$

    The scale $s$ is bounded by $b$, because the inverse of every layer multiplies
    rounding errors by $1/s$:

    | `scale` | $s$ | range |
    | --- | --- | --- |
    | `"tanh"` | $\exp(\beta \tanh(a / \beta))$, $\beta = \ln b$ | $(1/b,\, b)$ |
    | `"sigmoid"` | $1/b + (1 - 1/b)\,\sigma(a + 2)$ | $(1/b,\, 1)$ |
    | `"exp"` | $\exp(\min(\max(a, -\beta), \beta))$ | $[1/b,\, b]$ |

    $G$ is evaluated once in each direction, and once in the backward pass. If the state
    is complex, the real part of $a$ determines the modulus of $s$ as above, and the
    imaginary part of $a$ is the phase of $s$. There is no log-determinant then, because
    conventions differ: it may count complex or real dimensions.

    Args:
        conditioner: The network $G$. It takes $x_1$ and the context, and returns $a$
            and $t$ concatenated along `dim`, each of the shape of $x_2$.
        split: Which entries $x_1$ has: their number along `dim`, by default half of
            them, rounded down; the sizes of $x_1$ and $x_2$; or a boolean mask. A mask
            with one axis selects entries along `dim`. A mask with more axes, which
            broadcasts to the last axes of the state, and `"checkerboard"` select single
            positions: then $G$ takes the state with zeros in place of $x_2$, and $a$
            and $t$ have the shape of the state; their entries in place of $x_1$ are not
            used.
        dim: The axis of the channels; -1 for sequences and vectors.
        swap: Whether $x_2$ conditions $x_1$ instead.
        scale: The function that computes $s$ from $a$, see the table; or a callable
            that computes $\ln s$ from $a$, without a bound.
        bound: The bound $b$, larger than 1, by default 2, and finite if `scale` is
            `"tanh"`.
        volume_preserving: Whether the mean of $\ln s$ over a sample is subtracted from
            it, so that the log-determinant is 0 (GIN). Then $s$ is between $1/b^2$ and
            $b^2$.

    Shape:
        Any tensor with at least two entries along `dim`; the output has the same shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, or the state has an integer
            dtype.
        ValueError: If `split` leaves one part empty, `scale` is unknown, `bound` is not
            larger than 1 (or not finite with `"tanh"`), or the conditioner returns
            a tensor of the wrong shape.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> from torch import nn
        >>> layer = AffineCoupling(nn.Conv2d(2, 4, 3, padding=1))
        >>> x = torch.randn(1, 4, 8, 8)
        >>> y, log_det = layer.forward_and_log_det(x)
        >>> torch.allclose(layer.inverse(y), x, atol=1e-5), log_det.shape
        (True, torch.Size([1]))

    References:
        Dinh et al., *Density estimation using Real NVP*, 2016. arXiv:1605.08803
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        split: Split = None,
        dim: int = 1,
        swap: bool = False,
        scale: Scale = "tanh",
        bound: float | None = None,
        volume_preserving: bool = False,
    ) -> None:
        super().__init__()
        self.split, self.dim, self.swap = checked_partition(self, split, dim, swap=swap)
        self.scale, self.bound = checked_scale(scale, bound)
        kept, moved = kept_and_moved(self) if dim == 1 else (None, None)
        check_conditioner(conditioner, kept, None if moved is None else 2 * moved)
        self.conditioner = conditioner
        self.volume_preserving = bool(volume_preserving)

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        """Scale and shift."""
        return self._forward(x, Context(context, named))[0]

    def inverse(self, y: Tensor, *context: Any, **named: Any) -> Tensor:
        """Subtract the shift and divide by the scale."""
        return self._inverse(y, Context(context, named))[0]

    def forward_and_log_det(
        self, x: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        r"""Return `y` and $\sum \ln s$."""
        y, log_s = self._forward(x, Context(context, named))
        return y, self._log_det(x, log_s)

    def inverse_and_log_det(
        self, y: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        r"""Return `x` and $-\sum \ln s$."""
        x, log_s = self._inverse(y, Context(context, named))
        return x, -self._log_det(y, log_s)

    def replay(self, y: Tensor, *context: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and compute `y` from it, in one evaluation of $G$."""
        x, y, _ = self._replay(y, Context(context, named), inverse=False)
        return x, y

    def replay_inverse(
        self, x: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and compute `x` from it, in one evaluation of $G$."""
        y, x, _ = self._replay(x, Context(context, named), inverse=True)
        return y, x

    def replay_and_log_det(self, y: Tensor, *context: Any, **named: Any) -> Any:
        """Same as `replay`, with the log-determinant."""
        x, y, log_s = self._replay(y, Context(context, named), inverse=False)
        return x, (y, self._log_det(y, log_s))

    def replay_inverse_and_log_det(self, x: Tensor, *context: Any, **named: Any) -> Any:
        """Same as `replay_inverse`, with the log-determinant."""
        y, x, log_s = self._replay(x, Context(context, named), inverse=True)
        return y, (x, -self._log_det(x, log_s))

    unchanged = unchanged_part

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.conditioner)

    def extra_repr(self) -> str:
        """Show where the state is split, and the function and bound of the scale."""
        gin = ", volume_preserving=True" if self.volume_preserving else ""
        return f"{shows_partition(self)}, {shows_scale(self)}{gin}"

    def _forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        parts = partition(self, x)
        x1, x2 = parts.kept(x), parts.moved(x)
        log_s, t = self._log_scale_and_shift(parts, x, x1, context)
        return parts.joined(x1, x2 * log_s.exp() + t), log_s

    def _inverse(self, y: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        parts = partition(self, y)
        y1, y2 = parts.kept(y), parts.moved(y)
        log_s, t = self._log_scale_and_shift(parts, y, y1, context)
        return parts.joined(y1, (y2 - t) * (-log_s).exp()), log_s

    def _replay(
        self, output: Tensor, context: Context, *, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = output.detach().clone().requires_grad_()
        parts = partition(self, state)
        log_s, t = self._log_scale_and_shift(parts, output, parts.kept(state), context)

        def invert(x2: Tensor) -> Tensor:
            if inverse:
                return x2.mul_(log_s.exp()).add_(t)
            return x2.sub_(t).mul_((-log_s).exp())

        with torch.no_grad():
            parts.update_(state.data, invert)
        return state, _Scaled.apply(output, state, log_s, t, parts, inverse), log_s

    def _log_scale_and_shift(
        self,
        parts: Partition,
        state: Tensor,
        kept: Tensor,
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        output: Tensor = in_its_precision(self.conditioner, kept, context)
        moved = parts.moved(state)
        doubled = list(moved.shape)
        doubled[self.dim] *= 2
        check_returned(type(self.conditioner).__name__, output, tuple(doubled), moved)
        a, t = output.to(moved.dtype).chunk(2, self.dim)
        log_s = parts.only_moved(log_scale(self, a))
        if self.volume_preserving:
            total = log_s.flatten(1).sum(1) / parts.moved_per_sample(state)
            mean = total.view(-1, *(1,) * (log_s.ndim - 1))
            log_s = parts.only_moved(log_s - mean)
        return log_s, t

    def _log_det(self, state: Tensor, log_s: Tensor) -> Tensor:
        if self.volume_preserving:
            return no_log_det(state)
        return sum_per_sample(self, log_s)


class _Scaled(torch.autograd.Function):
    """Return the known output, with the derivative of scaling and shifting `state`."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        state: Tensor,
        log_s: Tensor,
        t: Tensor,
        parts: Partition,
        inverse: bool,
    ) -> Tensor:
        ctx.parts, ctx.inverse = parts, inverse
        ctx.save_for_backward(output, log_s, t)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        output, log_s, t = ctx.saved_tensors
        grad2, moved = ctx.parts.moved(grad), ctx.parts.moved(output)
        scaled = grad2 * (-log_s if ctx.inverse else log_s).exp().conj()
        grad_state = ctx.parts.joined(ctx.parts.kept(grad), scaled)
        if ctx.inverse:
            return None, grad_state, -grad2 * moved.conj(), -scaled, None, None
        return None, grad_state, grad2 * (moved - t).conj(), grad2, None, None
