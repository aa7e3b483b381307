"""What modules hold at one moment: parameters, buffers, attributes, and their return.

A module keeps everything in dictionaries: its parameters, its buffers, the modules in
it, its hooks and all other attributes. `ParametersAndBuffers` handles the first two,
whose tensors a replay replaces; `Attributes` handles the rest, which it only compares
and puts back.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch._torch import versions

Holder: TypeAlias = dict[Any, Any]  # one dictionary of a module
Place: TypeAlias = tuple[Holder, Any, Tensor]  # a holder, a name in it, and its value
Change: TypeAlias = tuple[Holder, str, Any]  # a holder, a name, and its value to be
MISSING = object()  # stands for what is not there
KEEP = object()  # stands for what is left as it is
WITHOUT_GRAPH = (int, float, complex, str, type(None))


# --- parameters and buffers -----------------------------------------------------------


class Slot(NamedTuple):
    """A place in a module that holds a tensor, and what it held."""

    holder: Holder
    name: str
    tensor: Tensor
    version: int

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` is there now."""
        return self.holder.get(self.name) is tensor


class ParametersAndBuffers:
    """The parameters and buffers that modules have at one moment.

    Args:
        parts: The modules.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        parameters = [*map(_torch.parameters_of, parts)]
        buffers = [*map(_torch.buffers_of, parts)]
        self.parameters = slots(_places(parameters))
        self.buffers = slots(_places(buffers))
        self.holders: list[Holder] = [*parameters, *buffers]
        self.names = [*chain.from_iterable(self.holders)]
        self.sizes = [*map(len, self.holders)]
        filled = len(self.parameters) + len(self.buffers)
        self.empty = _empty(self.holders) if filled < len(self.names) else []

    def copy_buffers(self) -> list[Tensor]:
        """Copy the buffers, which the call that follows may change in place."""
        return [slot.tensor.clone() for slot in self.buffers]

    def keep_changed(self, copies: list[Tensor]) -> None:
        """Keep the copies of those buffers that the call has changed."""
        self.buffers = [
            slot if _unchanged(slot, copy) else slot._replace(tensor=copy, version=0)
            for slot, copy in zip(self.buffers, copies, strict=True)
        ]

    def changes(self, stand_ins: dict[int, Tensor]) -> list[Change]:
        """Return what has to be put where for the modules to have what they had.

        Args:
            stand_ins: What replaces a parameter, found by its `id`.
        """
        return [
            *self._exchanged(stand_ins),
            *[(s.holder, s.name, s.tensor.clone()) for s in self.buffers if _lost(s)],
            *[(h, n, None) for h, n in self.empty if h.get(n, MISSING) is not None],
            *self._appeared(),
        ]

    def _exchanged(self, stand_ins: dict[int, Tensor]) -> Iterator[Change]:
        for slot in self.parameters:
            tensor = stand_ins.get(id(slot.tensor), slot.tensor)
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
    """Note what some places hold, and how often it was changed in place."""
    counts = versions([tensor for _, _, tensor in places])
    return [Slot(*place, one) for place, one in zip(places, counts, strict=True)]


def changed_in_place(slots: list[Slot]) -> str | None:
    """Name a tensor that was changed in place since."""
    now = versions([slot.tensor for slot in slots])
    names = (s.name for s, count in zip(slots, now, strict=True) if count != s.version)
    return next(names, None)


@contextmanager
def exchanged(changes: list[Change]) -> Iterator[None]:
    """Let modules hold other things inside, and what they held afterwards."""
    orders = {id(holder): (holder, [*holder]) for holder, _, _ in changes}
    present = [(holder, name, holder.get(name, MISSING)) for holder, name, _ in changes]
    for change in changes:
        _put(*change)
    try:
        yield
    finally:
        for change in present:
            _put(*change)
        # `parameters()` and `state_dict()` follow the order of the dictionaries
        for holder, order in orders.values():
            if [*holder] != order:
                own = {name: holder.pop(name) for name in order if name in holder}
                holder.update(own)


def _put(holder: Holder, name: str, value: Any) -> None:
    if value is MISSING:
        holder.pop(name, None)
    else:
        holder[name] = value


def _places(holders: Sequence[dict[str, Any]]) -> list[Place]:
    return [
        (holder, name, tensor)
        for holder in holders
        for name, tensor in holder.items()
        if tensor is not None
    ]


def _empty(holders: Sequence[Holder]) -> list[tuple[Holder, str]]:
    return [(h, name) for h in holders for name, tensor in h.items() if tensor is None]


def _lost(slot: Slot) -> bool:
    return not slot.holds(slot.tensor)


def _unchanged(slot: Slot, copy: Tensor) -> bool:
    """Tell whether a buffer is surely what it was.

    Batch normalization changes its statistics without counting that as a change. To
    compare the values costs nothing on the CPU; elsewhere it would wait for the device,
    and the copy is kept.
    """
    if versions([slot.tensor]) != [slot.version] or copy.device.type != "cpu":
        return False
    try:
        return torch.equal(copy, slot.tensor)
    except (RuntimeError, AttributeError):  # of sparse ones, for example
        return False


def _sharded(slot: Slot, tensor: Tensor) -> bool:
    """Tell whether FSDP keeps a shard there now, which it alone may exchange."""
    current = slot.holder.get(slot.name)
    return hasattr(current, "device_mesh") and not hasattr(tensor, "device_mesh")


# --- attributes -----------------------------------------------------------------------


class Attributes:
    """What dictionaries of modules hold at one moment.

    Names and values are kept in one list each, because they are compared in every call,
    and nearly always nothing has changed.

    Args:
        holders: The dictionaries.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders
        self.sizes = [*map(len, holders)]
        self.filled = [*filter(None, holders)]
        self.names = [*chain.from_iterable(self.filled)]
        self.values = [*_values(self.filled)]

    def unchanged(self) -> bool:
        """Tell whether the modules hold the very same."""
        return (
            [*map(len, self.holders)] == self.sizes
            and [*chain.from_iterable(self.filled)] == self.names
            and all(map(operator.is_, _values(self.filled), self.values))
        )

    def tensors(self) -> list[Place]:
        """Return the tensors among them, each with its place."""
        if not any(issubclass(kind, Tensor) for kind in {*map(type, self.values)}):
            return []
        return [
            (holder, name, value)
            for holder, own in self.each()
            for name, value in own.items()
            if isinstance(value, Tensor)
        ]

    def each(self) -> list[tuple[Holder, Holder]]:
        """Return every holder, and what it held."""
        pairs = zip(self.names, self.values, strict=True)
        own = [dict(islice(pairs, size)) for size in self.sizes]
        return [*zip(self.holders, own, strict=True)]

    def restore(self) -> None:
        """Let the modules hold what they held, and nothing else."""
        if self.unchanged():
            return
        for holder, own in self.each():
            _fill(holder, own)


class AttributesOfCall:
    """What a call found in its modules, to be found again by a replay.

    Objects that the call itself exchanged are left out: they may hold the graph of the
    pass before. Numbers, strings, `None`, tensors without a graph and hooks are not.

    Args:
        before: What the call found; the modules hold what it left there.
        hooks: How many of the holders, from the last, hold hooks.
    """

    def __init__(self, before: Attributes, hooks: int) -> None:
        self.holders = before.holders
        self.all = before if before.unchanged() else None
        self.some: list[tuple[Holder, Holder]] = []
        if self.all is None:
            each = before.each()
            first = len(each) - hooks
            safe = [(holder, _safe(holder, own)) for holder, own in each[:first]]
            self.some = [*safe, *each[first:]]

    def restore(self) -> Attributes:
        """Let the modules hold it, and nothing new, and return what they held."""
        if self.all is not None and self.all.unchanged():
            return self.all
        present = Attributes(self.holders)
        for holder, own in self.some if self.all is None else self.all.each():
            there = [(k, v) for k, v in own.items() if v is not KEEP or k in holder]
            _fill(holder, {k: holder[k] if v is KEEP else v for k, v in there})
        return present


def has_no_graph(value: object) -> bool:
    """Tell whether a value surely holds no graph."""
    return isinstance(value, WITHOUT_GRAPH) or (
        isinstance(value, Tensor) and not value.requires_grad
    )


def _values(holders: Sequence[Holder]) -> chain[Any]:
    return chain.from_iterable(map(dict.values, holders))


def _safe(holder: Holder, before: Holder) -> Holder:
    """Return what did not change or holds no graph for sure; `KEEP` for the rest."""
    return {
        name: value if holder.get(name) is value or has_no_graph(value) else KEEP
        for name, value in before.items()
    }


def _fill(holder: Holder, own: Holder) -> None:
    """Let a dictionary hold this and nothing else, in this order."""
    for name in holder.keys() - own.keys():
        del holder[name]
    holder.update(own)
    if [*holder] != [*own]:
        holder.clear()
        holder.update(own)
