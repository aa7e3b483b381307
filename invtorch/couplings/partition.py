"""How a coupling divides a state into a part that is kept and a part that moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from invtorch._checks import check_axis, check_count

# what the argument `split` of a coupling can be
Split: TypeAlias = int | Sequence[int] | Tensor | str | None
# what its attribute is
Place: TypeAlias = int | tuple[int, ...] | str | None
CHECKERBOARD = "checkerboard"
MASK = "mask"


class Partition(Protocol):
    """The two parts of a state, for one shape."""

    def kept(self, state: Tensor) -> Tensor:
        """Return the part that conditions and does not change."""

    def moved(self, state: Tensor) -> Tensor:
        """Return the part that changes."""

    def joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Return the state that has these parts."""

    def update_(self, state: Tensor, change: Callable[[Tensor], object]) -> None:
        """Let `change` modify in place the part of `state` that changes."""

    def plus_kept(self, state: Tensor, kept: Tensor, *, own: bool = False) -> Tensor:
        """Return the state with `kept` added to the part that is kept.

        With `own`, the state itself may be changed and returned.
        """

    def only_kept(self, values: Tensor) -> Tensor:
        """Return `values`, of the shape of `kept`, without entries that move."""

    def only_moved(self, values: Tensor) -> Tensor:
        """Return `values`, of the shape of `moved`, without entries that are kept."""

    def moved_per_sample(self, state: Tensor) -> int:
        """Return the number of entries of one sample that move."""


class Narrow(NamedTuple):
    """The entries before `place` along an axis, and the others. Both are views.

    Attributes:
        dim: The axis.
        place: The number of entries of the first part.
        swap: Whether the second part is kept, and not the first.
    """

    dim: int
    place: int
    swap: bool

    def kept(self, state: Tensor) -> Tensor:
        """Return the part that conditions."""
        first, second = state.tensor_split((self.place,), self.dim)
        return second if self.swap else first

    def moved(self, state: Tensor) -> Tensor:
        """Return the part that changes."""
        first, second = state.tensor_split((self.place,), self.dim)
        return first if self.swap else second

    def joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Concatenate both parts."""
        parts = [moved, kept] if self.swap else [kept, moved]
        return torch.cat(parts, self.dim)

    def update_(self, state: Tensor, change: Callable[[Tensor], object]) -> None:
        """Change the part in place, without a copy."""
        change(self.moved(state))

    def plus_kept(self, state: Tensor, kept: Tensor, *, own: bool = False) -> Tensor:
        """Add to the kept part."""
        result = state if own else state.clone()
        self.kept(result).add_(kept)
        return result

    def only_kept(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values

    def only_moved(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values

    def moved_per_sample(self, state: Tensor) -> int:
        """Return the number of entries of one sample that move."""
        return self.moved(state)[:1].numel()


class Select(NamedTuple):
    """Entries along an axis that a mask with one axis selects, and the others.

    Attributes:
        dim: The axis.
        kept_at: The indices of the entries that are kept.
        moved_at: The indices of the others.
        back_at: Where each entry is when the parts are concatenated.
    """

    dim: int
    kept_at: Tensor
    moved_at: Tensor
    back_at: Tensor

    def kept(self, state: Tensor) -> Tensor:
        """Return the part that conditions."""
        return state.index_select(self.dim, self.kept_at)

    def moved(self, state: Tensor) -> Tensor:
        """Return the part that changes."""
        return state.index_select(self.dim, self.moved_at)

    def joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Concatenate both parts, and put their entries in place."""
        return torch.cat([kept, moved], self.dim).index_select(self.dim, self.back_at)

    def update_(self, state: Tensor, change: Callable[[Tensor], object]) -> None:
        """Change a copy of the part, and write it."""
        moved = self.moved(state)
        change(moved)
        state.index_copy_(self.dim, self.moved_at, moved)

    def plus_kept(self, state: Tensor, kept: Tensor, *, own: bool = False) -> Tensor:
        """Add to the kept part."""
        del own
        return state.index_add(self.dim, self.kept_at, kept)

    def only_kept(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values

    def only_moved(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values

    def moved_per_sample(self, state: Tensor) -> int:
        """Return the number of entries of one sample that move."""
        return self.moved(state)[:1].numel()


class Masked(NamedTuple):
    """The entries where a mask is true, and the others; both have the state's shape.

    Entries that do not belong to a part are zeros in it, so that convolutions see
    where each entry is.

    Attributes:
        mask: Shape that broadcasts to the state; true where entries are kept.
    """

    mask: Tensor

    def kept(self, state: Tensor) -> Tensor:
        """Return the part that conditions."""
        return torch.where(self.mask, state, 0)

    def moved(self, state: Tensor) -> Tensor:
        """Return the part that changes."""
        return torch.where(self.mask, 0, state)

    def joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Take each entry from its part."""
        return torch.where(self.mask, kept, moved)

    def update_(self, state: Tensor, change: Callable[[Tensor], object]) -> None:
        """Change a copy of the part, and write it."""
        moved = self.moved(state)
        change(moved)
        state.copy_(self.joined(state, moved))

    def plus_kept(self, state: Tensor, kept: Tensor, *, own: bool = False) -> Tensor:
        """Add to the kept part."""
        del own
        return state + self.kept(kept)

    def only_kept(self, values: Tensor) -> Tensor:
        """Return `values`, with zeros for entries that move."""
        return self.kept(values)

    def only_moved(self, values: Tensor) -> Tensor:
        """Return `values`, with zeros for entries that are kept."""
        return self.moved(values)

    def moved_per_sample(self, state: Tensor) -> int:
        """Return the number of entries of one sample that move."""
        return int((~self.mask).expand(1, *state.shape[1:]).sum())


def checked_partition(
    layer: nn.Module, split: Split, dim: int, *, swap: bool
) -> tuple[Place, int, bool]:
    """Check how a layer divides its state, and register the buffers of a mask.

    The buffers are not part of the state dict.

    Args:
        layer: The layer.
        split: The number of entries of the first part along `dim`; the numbers of both
            parts; a boolean mask of the first part; `"checkerboard"`; or `None` for
            half of the entries.
        dim: The axis that is divided.
        swap: Whether the second part conditions the first.

    Returns:
        The attributes `split`, `dim` and `swap` of the layer.

    Raises:
        TypeError: If `split` is of another type.
        ValueError: If one part would be empty.
    """
    check_axis(dim)
    mask = first = second = None
    if isinstance(split, Tensor):
        mask, split = _checked_mask(split), MASK
        if mask.ndim == 1:  # indices: a mask that selects has no size in a graph
            first, second = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    layer.register_buffer("mask", mask, persistent=False)
    layer.register_buffer("first_at", first, persistent=False)
    layer.register_buffer("second_at", second, persistent=False)
    return split if split == MASK else _checked_split(split), dim, bool(swap)


def _checked_split(split: int | Sequence[int] | str | None) -> Place:
    if isinstance(split, str):
        if split != CHECKERBOARD:
            raise TypeError(
                f"split is {split!r}, but must be a whole number, two sizes, a boolean "
                f"mask or {CHECKERBOARD!r}"
            )
        return split
    if isinstance(split, Sequence):
        return _checked_sizes([*split])
    if split is not None:
        check_count("split", split)
    return split


def _checked_sizes(sizes: Sequence[Any]) -> tuple[int, ...]:
    for size in sizes:
        check_count("split", size)
    if len(sizes) != 2:
        raise ValueError(
            f"split has {len(sizes)} sizes, but a coupling has two parts: give the "
            f"sizes of the part that conditions and of the other"
        )
    return tuple(sizes)


def _checked_mask(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.ndim < 1:
        raise TypeError(
            f"split is a tensor of {mask.dtype} with {mask.ndim} axes, but a mask is "
            f"boolean with at least one axis: write `split=mask.bool()`"
        )
    if mask.all() or not mask.any():
        raise ValueError(
            "split is a mask with all entries equal, but both parts of a coupling need "
            "at least one entry"
        )
    return mask.clone()


def kept_and_moved(layer: Any) -> tuple[int | None, int | None]:
    """Return the sizes of the kept and the moved part along `dim`, as far as known."""
    split = layer.split
    sizes: tuple[int | None, int | None] = (None, None)
    if isinstance(split, int):
        sizes = (split, None)
    elif isinstance(split, tuple):
        sizes = (split[0], split[1])
    elif layer.first_at is not None:
        sizes = (len(layer.first_at), len(layer.second_at))
    return sizes[::-1] if layer.swap else sizes


def keeps_first(layer: Any) -> bool:
    """Return whether the kept part is the first entries, `split` of them or half."""
    return not layer.swap and (layer.split is None or isinstance(layer.split, int))


def partition(layer: Any, state: Tensor, *, other: bool = False) -> Partition:
    """Return how a layer divides a state.

    Args:
        layer: The layer.
        state: The state, or a tensor of its shape.
        other: Whether the parts are exchanged.

    Raises:
        ValueError: If the state has no axis `dim`, one part would be empty, or sizes or
            mask do not fit.
    """
    split, dim, swap = layer.split, layer.dim, layer.swap != other
    size = size_along(state, dim)
    if split == MASK:
        return _masked(layer, state, dim, swap)
    if split == CHECKERBOARD:
        return Masked(_checkerboard(state, dim) != swap)
    if isinstance(split, tuple) and sum(split) != size:
        raise ValueError(
            f"split has the sizes {split}, but the state has {size} entries along dim "
            f"{dim}: give sizes that add up to {size}"
        )
    place = split[0] if isinstance(split, tuple) else split
    place = size // 2 if place is None else place
    if not 0 < place < size:
        raise ValueError(
            f"a state with {size} entries along dim {dim} cannot be split at "
            f"{place}: both parts need at least one"
        )
    return Narrow(dim, place, swap)


def unchanged_part(layer: Any, mask: Tensor, direction: str) -> Tensor:
    """Return `mask` where entries are kept, and false where they move."""
    del direction
    parts = partition(layer, mask)
    return parts.joined(parts.kept(mask), torch.zeros_like(parts.moved(mask)))


def size_along(state: Tensor, dim: int) -> int:
    """Return the size of a state along an axis.

    Raises:
        ValueError: If it has no such axis, or this is the axis of the batch.
    """
    if not -state.ndim < dim < state.ndim:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} has no dim {dim} to be split "
            f"along: give it (batch, channels, ...)"
        )
    return state.shape[dim]


def _masked(layer: Any, state: Tensor, dim: int, swap: bool) -> Partition:
    mask, shape = layer.mask, tuple(state.shape)
    if mask.ndim == 1:
        if len(mask) != shape[dim]:
            raise ValueError(
                f"split is a mask of {len(mask)} entries, but the state has "
                f"{shape[dim]} along dim {dim}: give a mask of that size"
            )
        places = layer.first_at, layer.second_at
        kept, moved = places[::-1] if swap else places
        return Select(dim, kept, moved, torch.cat([kept, moved]).argsort())
    expected = shape[-mask.ndim :] if mask.ndim < len(shape) else ()
    fits = len(expected) == mask.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"split is a mask of shape {tuple(mask.shape)}, but does not fit the last "
            f"axes of a state of shape {shape}: give one that broadcasts to a sample"
        )
    return Masked(mask != swap)


def _checkerboard(state: Tensor, dim: int) -> Tensor:
    """Return a mask of the entries whose indices, without batch and `dim`, sum to even.

    Raises:
        ValueError: If there is only one position.
    """
    axes = [a for a in range(1, state.ndim) if a != dim % state.ndim]
    total = torch.zeros((1,) * state.ndim, dtype=torch.int64, device=state.device)
    for axis in axes:
        shape = [-1 if a == axis else 1 for a in range(state.ndim)]
        size = state.shape[axis]
        total = total + torch.arange(size, device=state.device).view(shape)
    if total.numel() < 2:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} has fewer than two positions for a "
            f"checkerboard: split its channels instead"
        )
    return total % 2 == 0


def shows_partition(layer: Any) -> str:
    """Return what `extra_repr` shows of how a layer divides its state."""
    split = "half" if layer.split is None else layer.split
    if layer.first_at is not None:
        split = f"mask({len(layer.first_at)} of {len(layer.mask)})"
    elif split == MASK:
        split = f"mask{tuple(layer.mask.shape)}"
    return f"split={split}, dim={layer.dim}{', swap=True' if layer.swap else ''}"
