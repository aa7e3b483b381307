"""The parameters and buffers of modules, and how others stand in for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from invtorch.engine.attributes import Holder

Place: TypeAlias = tuple[Holder, Any, Tensor]
Change: TypeAlias = tuple[Holder, str, Any]  # where, and what is to stand there
MISSING = object()  # stands for what is not there


class Slot(NamedTuple):
    """A place in a module that holds a tensor, and what it held."""

    holder: Holder
    name: str
    tensor: Tensor
    version: int

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` is what stands there now."""
        return self.holder.get(self.name) is tensor


class Tables:
    """The parameters and buffers that modules have at one moment.

    Args:
        parts: The modules.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        parameters = [part._parameters for part in parts]
        buffers = [part._buffers for part in parts]
        self.parameters = slots(_places(parameters))
        self.buffers = slots(_places(buffers))
        self.holders: list[Holder] = [*parameters, *buffers]
        self.names = [*chain.from_iterable(self.holders)]
        self.sizes = [*map(len, self.holders)]
        filled = len(self.parameters) + len(self.buffers)
        self.empty = _empty(self.holders) if filled < len(self.names) else []

    def copies(self) -> list[Tensor]:
        """Copy the buffers, which the call that follows may change in place."""
        return [slot.tensor.clone() for slot in self.buffers]

    def keep(self, copies: list[Tensor]) -> None:
        """Keep the copies of those buffers that the call has changed."""
        self.buffers = [
            slot if _untouched(slot, copy) else slot._replace(tensor=copy, version=0)
            for slot, copy in zip(self.buffers, copies, strict=True)
        ]

    def changes(self, others: dict[int, Tensor]) -> list[Change]:
        """Return what has to be put where for the modules to have what they had.

        Args:
            others: What is to stand for a parameter, found by its `id`.
        """
        return [
            *self._exchanged(others),
            *[(s.holder, s.name, s.tensor.clone()) for s in self.buffers if _lost(s)],
            *[(h, n, None) for h, n in self.empty if h.get(n, MISSING) is not None],
            *self._appeared(),
        ]

    def _exchanged(self, others: dict[int, Tensor]) -> Iterator[Change]:
        for slot in self.parameters:
            tensor = others.get(id(slot.tensor), slot.tensor)
            if not slot.holds(tensor) and not _sharded(slot, tensor):
                yield slot.holder, slot.name, tensor

    def _appeared(self) -> Iterator[Change]:
        if [*chain.from_iterable(self.holders)] == self.names:
            return
        names = iter(self.names)
        for holder, size in zip(self.holders, self.sizes, strict=True):
            known = {*islice(names, size)}
            yield from ((holder, name, MISSING) for name in holder if name not in known)


def slots(places: Sequence[Place]) -> list[Slot]:
    """Note what stands in some places, and how often it had been changed."""
    found = versions([tensor for _, _, tensor in places])
    return [Slot(*place, one) for place, one in zip(places, found, strict=True)]


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each was changed in place (never, under inference mode)."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if t.is_inference() else t._version for t in tensors]


def changed(slots: list[Slot]) -> str | None:
    """Name a tensor that was changed in place since."""
    now = versions([slot.tensor for slot in slots])
    names = (s.name for s, found in zip(slots, now, strict=True) if found != s.version)
    return next(names, None)


@contextmanager
def swapped(changes: list[Change]) -> Iterator[None]:
    """Let other things stand in some places inside."""
    orders = {id(holder): (holder, [*holder]) for holder, _, _ in changes}
    present = [(holder, name, holder.get(name, MISSING)) for holder, name, _ in changes]
    for change in changes:
        _put(*change)
    try:
        yield
    finally:
        for change in present:
            _put(*change)
        for holder, order in orders.values():
            if [*holder] != order:
                own = {name: holder.pop(name) for name in order if name in holder}
                holder.update(own)


def _put(holder: Holder, name: str, value: Any) -> None:
    if value is MISSING:
        holder.pop(name, None)
    else:
        holder[name] = value


def _places(tables: Sequence[dict[str, Any]]) -> list[Place]:
    return [
        (table, name, tensor)
        for table in tables
        for name, tensor in table.items()
        if tensor is not None
    ]


def _empty(holders: Sequence[Holder]) -> list[tuple[Holder, str]]:
    return [(h, name) for h in holders for name, tensor in h.items() if tensor is None]


def _lost(slot: Slot) -> bool:
    return not slot.holds(slot.tensor)


def _untouched(slot: Slot, copy: Tensor) -> bool:
    """Tell whether a buffer is surely what it was.

    Batch normalization moves its statistics without counting that as a change. To look
    at the values costs nothing on the CPU; elsewhere it would wait for the device, and
    the copy is kept.
    """
    if versions([slot.tensor]) != [slot.version] or copy.device.type != "cpu":
        return False
    try:
        return torch.equal(copy, slot.tensor)
    except (RuntimeError, AttributeError):  # of sparse ones, for example
        return False


def _sharded(slot: Slot, tensor: Tensor) -> bool:
    """Tell whether FSDP keeps a shard there now: it alone may exchange that."""
    current = slot.holder.get(slot.name)
    return hasattr(current, "device_mesh") and not hasattr(tensor, "device_mesh")
