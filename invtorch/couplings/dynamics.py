"""Steps of second-order dynamics, whose state is two tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import check_module, check_number, check_real_log_det
from invtorch.couplings.conditioning import shift_of
from invtorch.keywords import keywords_of
from invtorch.module import InvertibleModule, VolumePreserving
from invtorch.recording import Context
from invtorch.replay import StepGraph, edge_of, start_of

Pair = tuple[Tensor, Tensor]


class MomentumStep(InvertibleModule):
    r"""Move a position by a velocity that follows a network (momentum networks).

    $$ v' = \gamma v + (1 - \gamma) f(x; c), \qquad x' = x + v' $$

    $$ x = x' - v', \qquad v = \bigl(v' - (1 - \gamma) f(x; c)\bigr) / \gamma $$

    With $\gamma = 0$ it would be a residual block, which has no inverse. $f$ is any
    network; it is evaluated once in each direction, and once in the backward pass. The
    inverse divides by $\gamma$, so each layer multiplies rounding errors by
    $1/\gamma$: the smaller $\gamma$, the more anchors a deep network needs. The
    log-determinant is $\ln \gamma$ times the number of entries of $v$.

    Args:
        f: The network $f$. It takes $x$ and the context, and returns a tensor of the
            shape of $x$.
        gamma: The factor $\gamma$ of the old velocity, between 0 and 1.

    Shape:
        A tuple of position and velocity, two tensors of the same shape; so is the
        output.

    Raises:
        TypeError: If $f$ is not an `nn.Module`, `gamma` not a number, or the state not
            a tuple of two tensors.
        ValueError: If `gamma` is not between 0 and 1, or a tensor has the wrong shape.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> from torch import nn
        >>> layer = MomentumStep(nn.Linear(4, 4), gamma=0.9)
        >>> x, v = torch.randn(2, 4), torch.zeros(2, 4)
        >>> torch.allclose(layer.inverse(layer((x, v)))[0], x, atol=1e-5)
        True

    References:
        Sander et al., *Momentum residual neural networks*, 2021. arXiv:2102.07870
    """

    def __init__(self, f: nn.Module, *, gamma: float = 0.9) -> None:
        super().__init__()
        check_module("f", f)
        check_number("gamma", gamma)
        if not 0 < gamma < 1:
            raise ValueError(
                f"gamma is {gamma}, but must be between 0 and 1: at 0 the step has no "
                f"inverse, and at 1 the network has no effect"
            )
        self.f = f
        self.gamma = gamma

    def forward(self, x: Pair, *context: Any, **named: Any) -> Pair:
        """Move the velocity, then the position."""
        q, v = checked_pair(self, x)
        v = self.gamma * v + self._force(q, Context(context, named))
        return q + v, v

    def inverse(self, y: Pair, *context: Any, **named: Any) -> Pair:
        """Move the position back, then the velocity."""
        q, v = checked_pair(self, y)
        q = q - v
        return q, (v - self._force(q, Context(context, named))) / self.gamma

    def forward_and_log_det(
        self, x: Pair, *context: Any, **named: Any
    ) -> tuple[Pair, Tensor]:
        r"""Return the new state and $n \ln \gamma$, with $n$ entries of $v$."""
        return self.forward(x, *context, **named), self._log_det(x)

    def inverse_and_log_det(
        self, y: Pair, *context: Any, **named: Any
    ) -> tuple[Pair, Tensor]:
        r"""Return the old state and $-n \ln \gamma$."""
        return self.inverse(y, *context, **named), -self._log_det(y)

    def replay(self, state: Pair, *context: Any, **named: Any) -> StepGraph:
        """Rebuild the input, and return the graph of `f`, in one evaluation."""
        q, v = state
        start = q - v
        kept, force = self._force_at(start, Context(context, named))
        v = torch.sub(v, force.detach()).div_(self.gamma)
        matrix = (1.0, self.gamma), (0.0, self.gamma)
        return StepGraph((start, v), kept, edge_of(force), matrix, (1, 1), (1, 0))

    def replay_inverse(self, state: Pair, *context: Any, **named: Any) -> StepGraph:
        """Rebuild the output, and return the graph of `f`, in one evaluation."""
        q, v = state
        kept, force = self._force_at(q, Context(context, named))
        v = torch.add(force.detach(), v, alpha=self.gamma)
        matrix, factor = ((1.0, -1.0), (0.0, 1 / self.gamma)), -1 / self.gamma
        edge = edge_of(force)
        return StepGraph((q + v, v), kept, edge, matrix, (0, factor), (1, -1))

    def replay_and_log_det(self, state: Pair, *context: Any, **named: Any) -> StepGraph:
        """Same as `replay`: the log-determinant is constant."""
        return self.replay(state, *context, **named)

    def replay_inverse_and_log_det(
        self, state: Pair, *context: Any, **named: Any
    ) -> StepGraph:
        """Same as `replay_inverse`: the log-determinant is constant."""
        return self.replay_inverse(state, *context, **named)

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.f)

    def extra_repr(self) -> str:
        """Show the factor."""
        return f"gamma={self.gamma}"

    def _force(self, x: Tensor, context: Context) -> Tensor:
        return (1 - self.gamma) * shift_of(self.f, x, x, context)

    def _force_at(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        kept = x.detach().requires_grad_()
        return kept, self._force(start_of(kept), context)

    def _log_det(self, state: Pair) -> Tensor:
        _, v = checked_pair(self, state)
        check_real_log_det(self, v)
        return v.new_full((len(v),), v[:1].numel() * math.log(self.gamma))


class LeapfrogStep(VolumePreserving):
    r"""Move a position by a network that is its acceleration (leapfrog).

    $$ (x_{n-1}, x_n) \mapsto (x_n, x_{n+1}), \qquad
       x_{n+1} = 2 x_n - x_{n-1} + h^2 f(x_n; c) $$

    This discretizes $\ddot x = f(x)$. The inverse is the same step backward in time,
    $x_{n-1} = 2 x_n - x_{n+1} + h^2 f(x_n; c)$, and the volume is preserved. $f$ is any
    network; it is evaluated once in each direction, and once in the backward pass.

    Args:
        f: The network $f$. It takes $x_n$ and the context, and returns a tensor of the
            shape of $x_n$.
        step: The step size $h$, larger than 0.

    Shape:
        A tuple of the last two positions, tensors of the same shape; so is the output.

    Raises:
        TypeError: If $f$ is not an `nn.Module`, `step` not a number, or the state not a
            tuple of two tensors.
        ValueError: If `step` is not larger than 0, or a tensor has the wrong shape.

    Examples:
        >>> from torch import nn
        >>> layer = LeapfrogStep(nn.Linear(4, 4), step=0.5)
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(layer.inverse(layer((x, x)))[0], x, atol=1e-5)
        True

    References:
        Lensink et al., *Fully hyperbolic convolutional neural networks*, 2019.
        arXiv:1905.10484
    """

    def __init__(self, f: nn.Module, *, step: float = 1.0) -> None:
        super().__init__()
        check_module("f", f)
        check_number("step", step)
        if not 0 < step < math.inf:
            raise ValueError(f"step is {step}, but must be larger than 0 and finite")
        self.f = f
        self.step = step

    def forward(self, x: Pair, *context: Any, **named: Any) -> Pair:
        """Step forward in time."""
        before, now = checked_pair(self, x)
        return now, 2 * now - before + self._force(now, Context(context, named))

    def inverse(self, y: Pair, *context: Any, **named: Any) -> Pair:
        """Step backward in time."""
        now, after = checked_pair(self, y)
        return 2 * now - after + self._force(now, Context(context, named)), now

    def replay(self, state: Pair, *context: Any, **named: Any) -> StepGraph:
        """Rebuild the input, and return the graph of `f`, in one evaluation."""
        now, after = state
        kept, force, before = self._other(now, after, Context(context, named))
        matrix, a, w = ((0, 1), (-1, 2)), (0, 1), (0, 1)
        return StepGraph((before, now.detach()), kept, edge_of(force), matrix, a, w)

    def replay_inverse(self, state: Pair, *context: Any, **named: Any) -> StepGraph:
        """Rebuild the output, and return the graph of `f`, in one evaluation."""
        before, now = state
        kept, force, after = self._other(now, before, Context(context, named))
        matrix, a, w = ((2, -1), (1, 0)), (1, 0), (1, 0)
        return StepGraph((now.detach(), after), kept, edge_of(force), matrix, a, w)

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.f)

    def unchanged(self, mask: Pair, direction: str) -> tuple[Tensor | None, ...]:
        """The position in the middle is in both states."""
        return (mask[1], None) if direction == "forward" else (None, mask[0])

    def extra_repr(self) -> str:
        """Show the step size."""
        return f"step={self.step}"

    def _other(
        self, now: Tensor, end: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `now` as a leaf, the force, and the position at the other end."""
        kept = now.detach().requires_grad_()
        force = self._force(start_of(kept), context)
        return kept, force, 2 * now.detach() - end.detach() + force.detach()

    def _force(self, x: Tensor, context: Context) -> Tensor:
        return self.step**2 * shift_of(self.f, x, x, context)


def checked_pair(layer: nn.Module, state: object) -> Pair:
    """Return a state of two tensors of the same shape.

    Raises:
        TypeError: If it is another state.
        ValueError: If the shapes differ.
    """
    pair = state if isinstance(state, tuple) else ()
    if len(pair) != 2 or not all(isinstance(t, Tensor) for t in pair):
        raise TypeError(
            f"the state of {type(layer).__name__} is a tuple of two tensors, but got "
            f"{type(state).__name__}: give it `(x, torch.zeros_like(x))`, or `(x, x)`"
        )
    first, second = pair
    if first.shape != second.shape:
        raise ValueError(
            f"the state of {type(layer).__name__} has shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}: give it two tensors of the same shape"
        )
    return first, second
