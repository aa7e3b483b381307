"""The warning about entries of the state that no layer of a container changes."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from invtorch.module import InvertibleModule
from invtorch.recording import Context, Direction, Recorder, State

SHOWN = 8  # ranges of indices that a message lists


class Outline(NamedTuple):
    """The form of a state.

    Attributes:
        single: Whether it is one tensor, not a tuple.
        shapes: The shape of one sample of each tensor.
        device: The device of the first tensor.
    """

    single: bool
    shapes: tuple[torch.Size, ...]
    device: torch.device

    @classmethod
    def of(cls, state: State) -> Outline:
        """Return the form of a state."""
        tensors = _as_tuple(state)
        shapes = tuple(t.shape[1:] for t in tensors)
        return cls(isinstance(state, Tensor), shapes, tensors[0].device)

    def filled(self, masks: Any) -> tuple[Tensor, ...]:
        """Return masks of this form, with false entries where there is no mask.

        Raises:
            ValueError: If a mask has another shape.
        """
        given = (None,) * len(self.shapes) if masks is None else _as_tuple(masks)
        if len(given) != len(self.shapes):
            raise ValueError(
                f"`unchanged` returned {len(given)} masks for an output of "
                f"{len(self.shapes)} tensors: return one for each, or `None`"
            )
        return tuple(map(self._filled, given, self.shapes))

    def _filled(self, mask: Tensor | None, shape: torch.Size) -> Tensor:
        if mask is None:
            return torch.zeros(1, *shape, dtype=torch.bool, device=self.device)
        if mask.shape[1:] != shape:
            raise ValueError(
                f"`unchanged` returned a mask of {tuple(mask.shape[1:])} for an output "
                f"with samples of shape {tuple(shape)}: return one of that shape"
            )
        return mask.bool()


class LayerCall(NamedTuple):
    """A call of a layer in the pass: the direction, and the form of the output."""

    module: InvertibleModule
    direction: str
    output: Outline

    def unchanged(self, masks: tuple[Tensor, ...], single: bool) -> tuple[Tensor, ...]:
        """Return which entries of the output are unchanged, from those of the input."""
        method = self.module.unchanged
        if method is None:
            return self.output.filled(None)
        return self.output.filled(method(masks[0] if single else masks, self.direction))


# Containers that had their first pass. An attribute of theirs would be restored where a
# layer that contains one is evaluated again.
CALLED: WeakSet[nn.Module] = WeakSet()


class FirstPass:
    """Observes the first pass of a container, and warns after it.

    The shapes and the modules are noted during the pass, the masks are made after it:
    they add nothing to the memory that it takes.

    Attributes:
        calls: The calls of the layers, in order.
    """

    replays = False

    def __init__(self) -> None:
        self.calls: list[LayerCall] = []
        self.connected = True

    def observe(self, recorder: Recorder, state: State) -> FirstPass:
        """Receive the calls in place of a recorder, and pass them on."""
        self.recorder, self.replays = recorder, recorder.replays
        self.start, self.last = Outline.of(state), state
        return self

    def record(
        self,
        module: Any,
        direction: Direction,
        state: State,
        context: Context,
    ) -> Any:
        """Note the call."""
        self._follow(state)
        result = self.recorder.record(module, direction, state, context)
        name = direction.name.removesuffix("_and_log_det")
        self.last = result if name == direction.name else result[0]
        self.calls.append(LayerCall(module, name, Outline.of(self.last)))
        return result

    def keeping(self, memory: str) -> AbstractContextManager[object]:
        """Pass it on."""
        return self.recorder.keeping(memory)

    def end(self, result: Any) -> None:
        """Receive what the pass returned: a state, or one and a log-determinant."""
        if self.connected and not _is_same(self.last, result):
            self._follow(result[0] if isinstance(result, tuple) else result)
        del self.last, self.recorder

    def _follow(self, state: State) -> None:
        """Note whether a state is the last one, and not what something made of it."""
        self.connected = self.connected and _is_same(self.last, state)

    def warn(self) -> None:
        """Warn if there are several layers, and entries that all leave unchanged."""
        count = len(self.calls)
        if count < 2 or not self.connected:
            return
        masks = _unchanged(self.start, self.calls)
        if masks:
            found = names_of(masks, self.calls[-1].output.single)
            warnings.warn(
                f"{found} pass through all {count} layers unchanged: alternate "
                f"couplings with and without `swap=True`, or put a layer such as "
                f"Permute or LU1x1 between them",
                stacklevel=2,
            )


@torch.no_grad()
def _unchanged(start: Outline, calls: list[LayerCall]) -> tuple[Tensor, ...]:
    """Return masks of the entries that a pass leaves unchanged.

    Returns:
        `()` if there is none, and if all layers only move entries.
    """
    masks = tuple(map(torch.ones_like, start.filled(None)))
    single = start.single
    for call in calls:
        if not any(mask.any() for mask in masks):
            return ()
        masks, single = call.unchanged(masks, single), call.output.single
    some = any(mask.any() for mask in masks)
    return masks if some and not all(mask.all() for mask in masks) else ()


def names_of(masks: tuple[Tensor, ...], single: bool) -> str:
    """Return the names of the entries that masks of one sample select.

    Args:
        masks: A mask for each tensor of a state.
        single: Whether the state is one tensor, not a tuple.
    """
    places = [
        _entries(mask[0]) + (" of the state" if single else f" of tensor {i}")
        for i, mask in enumerate(masks)
        if mask.any()
    ]
    return " and ".join(places)


def _entries(mask: Tensor) -> str:
    """Return which entries of a sample a mask selects, by an axis if that is enough."""
    if mask.all():
        return "all entries"
    for dim in range(mask.ndim):
        rows = mask.movedim(dim, 0).reshape(mask.shape[dim], -1)
        if torch.equal(rows.all(1), rows.any(1)):
            return f"entries {_ranges(rows.all(1))} along dim {dim + 1}"
    first = tuple(mask.nonzero()[0].tolist())
    return f"{int(mask.sum())} of {mask.numel()} entries (the first at {first})"


def _ranges(selected: Tensor) -> str:
    """Return the indices of true entries: "0 to 3, 6"."""
    indices: list[int] = selected.nonzero()[:, 0].tolist()
    there = set(indices)
    starts = [i for i in indices if i - 1 not in there]
    ends = [i for i in indices if i + 1 not in there]
    shown = [
        f"{a} to {b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True)
    ]
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")


def _is_same(a: State, b: Any) -> bool:
    """Return whether two states are the same tensors."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _as_tuple(state: Any) -> tuple[Any, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)
