"""Affine coupling: one part of the state scales and shifts the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import check_conditioner, check_count, check_returned
from invtorch.couplings.conditioning import in_its_precision, split_state
from invtorch.module import InvertibleModule

# Computes $\ln s$ from $a$ and $\ln b$. The 2 in "sigmoid" makes $s$ close to 1 where
# $a$ is 0.
LOG_SCALES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "tanh": lambda a, limit: limit * torch.tanh(a / limit),
    "sigmoid": lambda a, limit: torch.log(
        math.exp(-limit) + (1 - math.exp(-limit)) * torch.sigmoid(a + 2)
    ),
    "exp": lambda a, limit: a.clamp(-limit, limit),
}


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
        split: Number of channels in $x_1$; half of them, rounded down, by default.
        dim: The axis that is split.
        scale: The function that computes $s$ from $a$, see the table.
        bound: The bound $b$, larger than 1, and finite if `scale` is `"tanh"`.

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
        split: int | None = None,
        dim: int = 1,
        scale: str = "tanh",
        bound: float = 2.0,
    ) -> None:
        super().__init__()
        if split is not None:
            check_count("split", split)
        if scale not in LOG_SCALES:
            raise ValueError(f"scale is {scale!r}, but must be one of {[*LOG_SCALES]}")
        if not bound > 1:
            raise ValueError(f"bound is {bound}, but must be larger than 1")
        if scale == "tanh" and not math.isfinite(bound):
            raise ValueError(
                f"bound is {bound}, but must be finite with scale='tanh', whose slope "
                f"it sets; use scale='exp' without a bound"
            )
        check_conditioner(conditioner, split if dim == 1 else None, None)
        self.conditioner = conditioner
        self.split = split
        self.dim = dim
        self.scale = scale
        self.bound = bound

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Scale and shift."""
        return self._forward(x, context)[0]

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        """Subtract the shift and divide by the scale."""
        return self._inverse(y, context)[0]

    def forward_and_log_det(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        r"""Return `y` and $\sum \ln s$."""
        y, log_s = self._forward(x, context)
        return y, _sum_per_sample(log_s)

    def inverse_and_log_det(self, y: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        r"""Return `x` and $-\sum \ln s$."""
        x, log_s = self._inverse(y, context)
        return x, -_sum_per_sample(log_s)

    def replay(self, y: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and compute `y` from it, in one evaluation of $G$."""
        x, y, _ = self._replay(y, context, inverse=False)
        return x, y

    def replay_inverse(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and compute `x` from it, in one evaluation of $G$."""
        y, x, _ = self._replay(x, context, inverse=True)
        return y, x

    def replay_and_log_det(self, y: Tensor, *context: Any) -> Any:
        """Same as `replay`, with the log-determinant."""
        x, y, log_s = self._replay(y, context, inverse=False)
        return x, (y, _sum_per_sample(log_s))

    def replay_inverse_and_log_det(self, x: Tensor, *context: Any) -> Any:
        """Same as `replay_inverse`, with the log-determinant."""
        y, x, log_s = self._replay(x, context, inverse=True)
        return y, (x, -_sum_per_sample(log_s))

    def extra_repr(self) -> str:
        """Show where the state is split, and the function and bound of the scale."""
        return (
            f"split={self.split or 'half'}, dim={self.dim}, scale={self.scale!r}, "
            f"bound={self.bound}"
        )

    def _forward(self, x: Tensor, context: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        x1, x2 = split_state(x, self.split, self.dim)
        log_s, t = self._log_scale_and_shift(x1, x2, context)
        return torch.cat([x1, x2 * log_s.exp() + t], self.dim), log_s

    def _inverse(self, y: Tensor, context: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        y1, y2 = split_state(y, self.split, self.dim)
        log_s, t = self._log_scale_and_shift(y1, y2, context)
        return torch.cat([y1, (y2 - t) * (-log_s).exp()], self.dim), log_s

    def _replay(
        self, output: Tensor, context: tuple[Any, ...], *, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = output.detach().clone().requires_grad_()
        kept, moved = split_state(state, self.split, self.dim)
        log_s, t = self._log_scale_and_shift(kept, moved, context)
        with torch.no_grad():
            _, x2 = split_state(state.data, self.split, self.dim)
            if inverse:
                x2.mul_(log_s.exp()).add_(t)
            else:
                x2.sub_(t).mul_((-log_s).exp())
        return state, _Scaled.apply(output, state, log_s, t, self.dim, inverse), log_s

    def _log_scale_and_shift(
        self, kept: Tensor, moved: Tensor, context: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        output: Tensor = in_its_precision(self.conditioner, kept, context)
        doubled = list(moved.shape)
        doubled[self.dim] *= 2
        check_returned(type(self.conditioner).__name__, output, tuple(doubled), moved)
        a, t = output.to(moved.dtype).chunk(2, self.dim)
        return self._log_scale(a), t

    def _log_scale(self, a: Tensor) -> Tensor:
        log_scale, limit = LOG_SCALES[self.scale], math.log(self.bound)
        if a.is_complex():
            return torch.complex(log_scale(a.real, limit), a.imag)
        return log_scale(a, limit)


class _Scaled(torch.autograd.Function):
    """Return the known output, with the derivative of scaling and shifting `state`."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        state: Tensor,
        log_s: Tensor,
        t: Tensor,
        dim: int,
        inverse: bool,
    ) -> Tensor:
        ctx.dim, ctx.inverse, ctx.size = dim, inverse, t.shape[dim]
        ctx.save_for_backward(output, log_s, t)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        output, log_s, t = ctx.saved_tensors
        start = grad.shape[ctx.dim] - ctx.size
        grad1, grad2 = grad.tensor_split((start,), ctx.dim)
        moved = output.narrow(ctx.dim, start, ctx.size)
        scaled = grad2 * (-log_s if ctx.inverse else log_s).exp().conj()
        grad_state = torch.cat([grad1, scaled], ctx.dim)
        if ctx.inverse:
            return None, grad_state, -grad2 * moved.conj(), -scaled, None, None
        return None, grad_state, grad2 * (moved - t).conj(), grad2, None, None


def _sum_per_sample(log_s: Tensor) -> Tensor:
    if log_s.is_complex():
        raise NotImplementedError(
            "AffineCoupling has no log-determinant of a complex state: give it the "
            "real and imaginary parts as channels (`torch.view_as_real`)"
        )
    return log_s.flatten(1).sum(1)
