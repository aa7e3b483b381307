"""Permutation of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from invtorch._checks import check_axis, check_count, check_generator
from invtorch.module import VolumePreserving, rearranged

Generator = torch.Generator | None

ORDERS: dict[str, Callable[[int, Generator], Tensor]] = {
    "random": lambda n, generator: torch.randperm(
        n, generator=generator, device=generator.device if generator else None
    ),
    "reverse": lambda n, _: torch.arange(n).flip(0),
    "swap": lambda n, _: torch.arange(n).roll(-(n // 2)),
}


class Permute(VolumePreserving):
    r"""Change the order of the channels, $y_i = x_{\pi(i)}$.

    Between couplings it lets every channel be changed. The order is part of the state
    dict. The inverse costs as much as the forward pass; nothing is rounded.

    Args:
        channels: Number of channels.
        order: $\pi$ as a sequence of all indices from 0; or `"random"`, `"reverse"`, or
            `"swap"`, which exchanges the first half, rounded down, and the rest.
        generator: Draws a random order.
        dim: The axis of the channels; -1 for sequences and vectors.

    Shape:
        Any tensor with `channels` entries along `dim`; the output has the same shape.

    Raises:
        TypeError: If `channels` or an index is not an integer.
        ValueError: If `order` is unknown or no permutation, or the state has other
            channels.

    Examples:
        >>> Permute(3, "reverse")(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[3., 2., 1.]])
    """

    def __init__(
        self,
        channels: int,
        order: str | Sequence[int] | Tensor = "random",
        *,
        generator: Generator = None,
        dim: int = 1,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_axis(dim)
        check_generator(generator)
        self.register_buffer("order", _checked(channels, order, generator))
        self.channels = channels
        self.dim = dim

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Apply the permutation."""
        self._check(x)
        return x.index_select(self.dim, self.get_buffer("order"))

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Undo the permutation."""
        self._check(y)
        return y.index_select(self.dim, self.get_buffer("order").argsort())

    unchanged = rearranged

    def extra_repr(self) -> str:
        """Show the number of channels, and the axis."""
        return f"channels={self.channels}, dim={self.dim}"

    def _check(self, state: Tensor) -> None:
        dim, fits = self.dim, -state.ndim < self.dim < state.ndim
        if not fits or state.shape[dim] != self.channels:
            raise ValueError(
                f"a state of shape {tuple(state.shape)} does not have the "
                f"{self.channels} channels of this Permute along dim {dim}: give it "
                f"such a state, or another `dim`"
            )


def _checked(
    channels: int, order: str | Sequence[int] | Tensor, generator: Generator
) -> Tensor:
    if isinstance(order, str) and order in ORDERS:
        return ORDERS[order](channels, generator)
    given: Any = order.tolist() if hasattr(order, "tolist") else order
    if isinstance(given, str):
        raise ValueError(
            f"order is {given!r}, but must be one of {[*ORDERS]} or a sequence of "
            f"indices"
        )
    if not isinstance(given, Sequence):
        raise TypeError(
            f"order is {given!r}, but must be a sequence of indices, or one of "
            f"{[*ORDERS]}"
        )
    for i, index in enumerate(given):
        check_count(f"order[{i}]", index, least=0)
    if sorted(given) != [*range(channels)]:
        raise ValueError(
            f"order is {[*given]}, but must have each of the indices from 0 to "
            f"{channels - 1} once"
        )
    device = order.device if isinstance(order, Tensor) else None
    return torch.tensor([*map(int, given)], dtype=torch.int64, device=device)
