"""Conditional affine layer: the context scales and shifts the state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invtorch._checks import check_axis, check_can_hold, check_module, check_tensor
from invtorch.couplings.log_scale import (
    Scale,
    checked_scale,
    log_scale,
    shows_scale,
    sum_per_sample,
)
from invtorch.couplings.partition import size_along
from invtorch.keywords import keywords_of
from invtorch.module import InvertibleModule
from invtorch.recording import Context, evaluated


class ConditionalAffine(InvertibleModule):
    r"""Scale and shift the state by functions of the context (FiLM).

    $$ y = s \odot x + t, \qquad (a, t) = G(c), \qquad x = (y - t) / s $$

    The scale $s$ is computed from $a$ as in `AffineCoupling`, and bounded like there.
    $G$ is evaluated once in each direction, and once in the backward pass.

    Args:
        conditioner: The network $G$. It takes the context, and returns $a$ and $t$
            concatenated along `dim`. Each has the shape of the state, or sizes of 1
            where the state has others, or lacks the last axes: `(batch, 2 * channels)`
            is enough for images with `dim=1`.
        dim: The axis of the channels; -1 for sequences and vectors.
        scale: The function that computes $s$ from $a$, see `AffineCoupling`.
        bound: The bound of $s$, larger than 1, by default 2.

    Shape:
        Any tensor; the output has the same shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, or returns numbers that the
            state cannot hold: real ones for integers, complex ones for real ones.
        ValueError: If `scale` or `bound` is not possible, or what the conditioner
            returns does not fit the state.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> from torch import nn
        >>> layer = ConditionalAffine(nn.Linear(3, 2 * 4))
        >>> x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 3)
        >>> y = layer(x, context)
        >>> torch.allclose(layer.inverse(y, context), x, atol=1e-5)
        True

    References:
        Perez et al., *FiLM: Visual reasoning with a general conditioning layer*, 2017.
        arXiv:1709.07871
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        dim: int = 1,
        scale: Scale = "tanh",
        bound: float | None = None,
    ) -> None:
        super().__init__()
        check_module("conditioner", conditioner)
        check_axis(dim)
        self.scale, self.bound = checked_scale(scale, bound)
        self.conditioner = conditioner
        self.dim = dim

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        """Scale and shift."""
        log_s, t = self._log_scale_and_shift(x, Context(context, named))
        return x * log_s.exp() + t

    def inverse(self, y: Tensor, *context: Any, **named: Any) -> Tensor:
        """Subtract the shift and divide by the scale."""
        log_s, t = self._log_scale_and_shift(y, Context(context, named))
        return (y - t) * (-log_s).exp()

    def forward_and_log_det(
        self, x: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        r"""Return `y` and $\sum \ln s$."""
        log_s, t = self._log_scale_and_shift(x, Context(context, named))
        return x * log_s.exp() + t, self._log_det(x, log_s)

    def inverse_and_log_det(
        self, y: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        r"""Return `x` and $-\sum \ln s$."""
        log_s, t = self._log_scale_and_shift(y, Context(context, named))
        return (y - t) * (-log_s).exp(), -self._log_det(y, log_s)

    def replay(self, y: Tensor, *context: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and compute `y` from it, in one evaluation of $G$."""
        log_s, t = self._log_scale_and_shift(y, Context(context, named))
        x = ((y - t) * (-log_s).exp()).detach().requires_grad_()
        return x, x * log_s.exp() + t

    def replay_inverse(
        self, x: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and compute `x` from it, in one evaluation of $G$."""
        log_s, t = self._log_scale_and_shift(x, Context(context, named))
        y = (x * log_s.exp() + t).detach().requires_grad_()
        return y, (y - t) * (-log_s).exp()

    def replay_and_log_det(self, y: Tensor, *context: Any, **named: Any) -> Any:
        """Same as `replay`, with the log-determinant."""
        log_s, t = self._log_scale_and_shift(y, Context(context, named))
        x = ((y - t) * (-log_s).exp()).detach().requires_grad_()
        return x, (x * log_s.exp() + t, self._log_det(x, log_s))

    def replay_inverse_and_log_det(self, x: Tensor, *context: Any, **named: Any) -> Any:
        """Same as `replay_inverse`, with the log-determinant."""
        log_s, t = self._log_scale_and_shift(x, Context(context, named))
        y = (x * log_s.exp() + t).detach().requires_grad_()
        return y, ((y - t) * (-log_s).exp(), -self._log_det(y, log_s))

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.conditioner, 0)

    def extra_repr(self) -> str:
        """Show the axis, and the function and bound of the scale."""
        return f"dim={self.dim}, {shows_scale(self)}"

    def _log_scale_and_shift(
        self, state: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        channels = size_along(state, self.dim)
        output: Tensor = evaluated(self.conditioner, context)
        check_tensor(type(self.conditioner).__name__, output)
        missing = state.ndim - output.ndim
        output = output.reshape(*output.shape, *(1,) * missing)
        fitting = [(1, n) for n in state.shape]
        fitting[self.dim] = (2 * channels,) * 2
        if missing < 0 or any(
            n not in sizes for n, sizes in zip(output.shape, fitting, strict=True)
        ):
            raise ValueError(
                f"the conditioner {type(self.conditioner).__name__} returned shape "
                f"{tuple(output.shape)}, but a state of shape {tuple(state.shape)} "
                f"needs {2 * channels} along dim {self.dim}, and its other sizes or 1"
            )
        check_can_hold(type(self.conditioner).__name__, output, state, "conditioner")
        a, t = output.to(state.dtype).chunk(2, self.dim)
        return log_scale(self, a), t

    def _log_det(self, state: Tensor, log_s: Tensor) -> Tensor:
        return sum_per_sample(self, log_s.expand(state.shape))
