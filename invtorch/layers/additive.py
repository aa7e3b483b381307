"""Additive coupling: one part of the state shifts the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invtorch.base import VolumePreserving
from invtorch.layers.fitting import check_conditioner, in_its_precision


class AdditiveCoupling(VolumePreserving):
    r"""Shift one part of the channels by a function of the others.

    $$ y_1 = x_1, \qquad y_2 = x_2 + G(x_1; c) $$

    The inverse subtracts what was added, $x_2 = y_2 - G(y_1; c)$, so $G$ may be any
    network, and is evaluated once in either direction.

    Args:
        conditioner: The network $G$. It takes $x_1$ and the context, and returns a
            tensor of the shape of $x_2$.
        split: Number of channels in $x_1$; half of them, rounded down, by default.
        dim: The axis that is split.

    Shape:
        Any tensor with at least two entries along `dim`; the output has the same shape.

    Raises:
        ValueError: If `split` leaves nothing on one side, or the shift does not have
            the shape of $x_2$.

    Examples:
        >>> from torch import nn
        >>> layer = AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1))
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True

    References:
        Dinh et al., *NICE: Non-linear independent components estimation*, 2014.
        arXiv:1410.8516
    """

    def __init__(
        self, conditioner: nn.Module, *, split: int | None = None, dim: int = 1
    ) -> None:
        super().__init__()
        if split is not None and split < 1:
            raise ValueError(f"split is {split}, but x1 must have at least 1 channel")
        if dim == 1:
            check_conditioner(conditioner, split, None)
        self.conditioner = conditioner
        self.split = split
        self.dim = dim

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Add the shift."""
        x1, x2 = self._parts(x)
        return torch.cat([x1, x2 + self._shift(x1, x2, context)], self.dim)

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        """Subtract the shift."""
        y1, y2 = self._parts(y)
        return torch.cat([y1, y2 - self._shift(y1, y2, context)], self.dim)

    def replay(self, y: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x` and attach `y` to it with one evaluation of the conditioner."""
        return self._replay(y, context, sign=1)

    def replay_inverse(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `y` and attach `x` to it with one evaluation of the conditioner."""
        return self._replay(x, context, sign=-1)

    def extra_repr(self) -> str:
        """Show where the state is split."""
        return f"split={self.split or 'half'}, dim={self.dim}"

    def _replay(
        self, output: Tensor, context: tuple[Any, ...], sign: int
    ) -> tuple[Tensor, Tensor]:
        state = output.detach().clone().requires_grad_()
        kept, moved = self._parts(state)
        shift = self._shift(kept, moved, context)
        self._parts(state.data)[1].sub_(shift.detach(), alpha=sign)
        return state, _Moved.apply(output, state, shift, self.dim, sign)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        size = state.shape[self.dim]
        split = size // 2 if self.split is None else self.split
        if not 0 < split < size:
            raise ValueError(
                f"a state with {size} entries along dim {self.dim} cannot be split at "
                f"{split}: both parts need at least one"
            )
        first, second = state.tensor_split((split,), self.dim)
        return first, second

    def _shift(self, kept: Tensor, moved: Tensor, context: tuple[Any, ...]) -> Tensor:
        shift: Tensor = in_its_precision(self.conditioner, kept, context)
        if shift.shape != moved.shape:
            raise ValueError(
                f"the conditioner {type(self.conditioner).__name__} returned shape "
                f"{tuple(shift.shape)}, but the part it shifts has shape "
                f"{tuple(moved.shape)}"
            )
        return shift.to(moved.dtype)


class _Moved(torch.autograd.Function):
    """The known output, with the derivative of adding `sign * shift` to `state`.

    The output of the layer is at hand when it is inverted: computing it again for the
    sake of its graph would cost two passes over the state.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, state: Tensor, shift: Tensor, dim: int, sign: int
    ) -> Tensor:
        ctx.dim, ctx.sign, ctx.size = dim, sign, shift.shape[dim]
        ctx.set_materialize_grads(False)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tail = grad.narrow(ctx.dim, grad.shape[ctx.dim] - ctx.size, ctx.size)
        return None, grad, tail if ctx.sign > 0 else -tail, None, None
