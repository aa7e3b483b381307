"""Record and restore what modules hold: parameters, buffers and attributes.

A module keeps everything in dictionaries: its parameters, its buffers, its submodules,
its hooks and all other attributes. `ParametersAndBuffers` handles the first two, whose
tensors a replay replaces. `Attributes` compares and restores the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from invtorch import _torch
from invtorch._torch import versions

Holder: TypeAlias = dict[Any, Any]  # one dictionary of a module
Place: TypeAlias = tuple[Holder, Any, Tensor]  # a holder, a name in it, and its value
Change: TypeAlias = tuple[Holder, str, Any]  # a holder, a name, and its new value
MISSING = object()  # the value of a name that is not there
KEEP = object()  # the value of a name that is not restored
WITHOUT_GRAPH = (int, float, complex, str, type(None))


# --- parameters and buffers -----------------------------------------------------------


class Slot(NamedTuple):
    """A name in a dictionary of a module, its tensor, and the version of the tensor."""

    holder: Holder
    name: str
    tensor: Tensor
    version: int

    def holds(self, tensor: Tensor) -> bool:
        """Return whether `tensor` is there now."""
        return self.holder.get(self.name) is tensor


class Copy(NamedTuple):
    """A copy of a buffer before a call, or of some of its entries.

    Attributes:
        tensor: The copy.
        entire: Whether it is a copy of all entries.
    """

    tensor: Tensor
    entire: bool

    @classmethod
    def whole(cls, buffer: Tensor) -> Copy:
        """Copy all entries."""
        return cls(buffer.clone(), True)

    @classmethod
    def sample(cls, buffer: Tensor) -> Copy:
        """Copy some entries, spread evenly; none where a comparison would wait."""
        count = SAMPLE if compares_at_once(buffer) else 0
        return cls(_some(buffer, count).clone(), False)

    def equals(self, slot: Slot, *, waits: bool, doubtful: bool) -> bool:
        """Return whether a buffer is unchanged.

        Batch normalization updates its statistics without incrementing their version,
        as does a change of `buffer.data`, so that the values are compared. On a device
        other than the CPU this would wait for the device.

        Args:
            slot: The buffer.
            waits: Whether to compare on such a device too.
            doubtful: The result where it is not compared is the contrary.
        """
        if versions([slot.tensor]) != [slot.version]:
            return False
        if not waits and not compares_at_once(slot.tensor):
            return not doubtful
        now = slot.tensor if self.entire else _some(slot.tensor, SAMPLE)
        try:
            return torch.equal(self.tensor, now)
        except (RuntimeError, AttributeError):  # for example of sparse tensors
            return False


SMALL = 4096  # entries of a buffer that costs little to copy and compare
SAMPLE = 8  # entries along each axis


def compares_at_once(tensor: Tensor) -> bool:
    """Return whether values can be compared without waiting for a device."""
    return tensor.device.type == "cpu"


def _is_small(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or tensor.numel() <= SMALL


def _some(tensor: Tensor, count: int) -> Tensor:
    """Return a view of `count` entries along each axis, or fewer."""
    if not count:
        return tensor[:0]
    return tensor[tuple(slice(None, None, -(-size // count)) for size in tensor.shape)]


class ParametersAndBuffers:
    """The parameters and buffers of modules at the time of a call.

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
        self.lost: str | None = None  # a buffer that was written without a copy
        filled = len(self.parameters) + len(self.buffers)
        self.empty = _empty(self.holders) if filled < len(self.names) else []

    def copy_buffers(self, written: set[Any], known: bool) -> list[Copy]:
        """Copy the buffers that the next call may change in place.

        A layer that has been evaluated before has shown which buffers it writes. Of the
        others, large ones are not copied, and a few of their entries are.

        Args:
            written: The buffers that earlier calls of the layer have written.
            known: Whether there were any.
        """
        return [
            Copy.whole(slot.tensor)
            if not known or key in written or _is_small(slot.tensor)
            else Copy.sample(slot.tensor)
            for key, slot in self._keyed()
        ]

    def keep_changed(self, copies: list[Copy], written: set[Any], known: bool) -> None:
        """Keep the copies of the buffers that the call changed."""
        kept = []
        for (key, slot), copy in zip(self._keyed(), copies, strict=True):
            if copy.equals(slot, waits=not known, doubtful=key in written):
                kept.append(slot)
                continue
            written.add(key)
            self.lost = self.lost if copy.entire else slot.name
            kept.append(slot._replace(tensor=copy.tensor, version=0))
        self.buffers = kept

    def _keyed(self) -> list[tuple[tuple[int, str], Slot]]:
        return [((i, slot.name), slot) for i, slot in enumerate(self.buffers)]

    def changes(self, stand_ins: dict[int, Tensor]) -> list[Change]:
        """Return the changes that restore the parameters and buffers of the call.

        Args:
            stand_ins: What replaces a parameter, found by its `id`.
        """
        return [
            *self._exchanged(stand_ins),
            *[(s.holder, s.name, s.tensor.clone()) for s in self.buffers if _lost(s)],
            *[(s.holder, s.name, Unreadable(s.name)) for s in self._changed_buffers()],
            *[(h, n, None) for h, n in self.empty if h.get(n, MISSING) is not None],
            *self._appeared(),
        ]

    def _changed_buffers(self) -> list[Slot]:
        if not self.buffers:
            return []
        now = versions([slot.tensor for slot in self.buffers])
        pairs = zip(self.buffers, now, strict=True)
        return [slot for slot, count in pairs if count != slot.version]

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


class Unreadable(Tensor):
    """Stands for a buffer that was changed in place since the forward pass.

    The layer may not read it: a counter that something else updates is no part of the
    layer. Any use of this tensor raises an error.

    Args:
        name: The name of the buffer.
    """

    @staticmethod
    def __new__(cls, name: str) -> Unreadable:
        """Make an empty tensor that knows the name."""
        made: Unreadable = torch.empty(0).as_subclass(cls)
        made.__dict__["buffer"] = name
        return made

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        """Refuse every operation."""
        leaves = _torch.tree_leaves((arguments, options))
        used = next(one for one in leaves if isinstance(one, cls))
        raise ChangedBufferError(used.__dict__["buffer"])


class ChangedBufferError(Exception):
    """A replay reads a buffer that was changed in place since the forward pass.

    Args:
        name: The name of the buffer.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def slots(places: Sequence[Place]) -> list[Slot]:
    """Record the tensors in some places, and their version counters."""
    counts = versions([tensor for _, _, tensor in places])
    return [Slot(*place, one) for place, one in zip(places, counts, strict=True)]


def changed_in_place(slots: list[Slot]) -> str | None:
    """Return the name of a tensor that was changed in place since, if any."""
    now = versions([slot.tensor for slot in slots])
    names = (s.name for s, count in zip(slots, now, strict=True) if count != s.version)
    return next(names, None)


@contextmanager
def exchanged(changes: list[Change]) -> Iterator[None]:
    """Return a context in which changes of modules are made, and undone afterwards."""
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


def _sharded(slot: Slot, tensor: Tensor) -> bool:
    """Return whether the place now holds a shard of FSDP, which only FSDP replaces."""
    current = slot.holder.get(slot.name)
    return hasattr(current, "device_mesh") and not hasattr(tensor, "device_mesh")


# --- attributes -----------------------------------------------------------------------


class Attributes:
    """The content of dictionaries of modules at the time of a call.

    All names are kept in one list, and all values in another. They are compared in
    every call, and nearly always nothing has changed.

    Args:
        holders: The dictionaries.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders
        self.sizes = [*map(len, holders)]
        self.filled = [*filter(None, holders)]
        self.names = [*chain.from_iterable(self.filled)]
        self.values = [*_values(self.filled)]
        self.kinds = kinds = {*map(type, self.values)}
        self.plain = not any(issubclass(kind, Tensor) for kind in kinds)

    def unchanged(self) -> bool:
        """Return whether the modules hold the same objects."""
        return (
            [*map(len, self.holders)] == self.sizes
            and [*chain.from_iterable(self.filled)] == self.names
            and all(map(operator.is_, _values(self.filled), self.values))
        )

    def tensors(self) -> list[Place]:
        """Return the tensors among the values, each with its place."""
        if self.plain:
            return []
        return [
            (holder, name, value)
            for holder, own in self.each()
            for name, value in own.items()
            if isinstance(value, Tensor)
        ]

    def instances_of(self, wanted: Callable[[type], bool]) -> list[Any]:
        """Return the values of some classes, each once."""
        kinds = {kind for kind in self.kinds if wanted(kind)}
        if not kinds:
            return []
        return [*{id(v): v for v in self.values if type(v) in kinds}.values()]

    def has_graphs(self) -> bool:
        """Return whether a tensor among the values has a graph."""
        return any(has_graph(value) for _, _, value in self.tensors())

    def each(self) -> list[tuple[Holder, Holder]]:
        """Return every holder, and what it held at the time of the call."""
        pairs = zip(self.names, self.values, strict=True)
        own = [dict(islice(pairs, size)) for size in self.sizes]
        return [*zip(self.holders, own, strict=True)]

    def restore(self) -> None:
        """Restore exactly what the modules held."""
        if self.unchanged():
            return
        for holder, own in self.each():
            _fill(holder, own)


class AttributesOfCall:
    """The attributes that a call found in its modules, to restore them for a replay.

    Objects that the call itself replaced are left out, because they may hold the graph
    of the previous pass. Numbers, strings, `None`, tensors without a graph, and hooks
    are restored in any case. Tensors with a graph, such as outputs that a hook stored,
    are restored while something else refers to them: the graph may be that of this or
    of an earlier pass, and would never be freed.

    Args:
        before: The attributes before the call. The modules now hold those after it.
        hooks: The number of holders, at the end, that hold hooks.
    """

    def __init__(self, before: Attributes, hooks: int) -> None:
        self.holders = before.holders
        same = before.unchanged() and not before.has_graphs()
        self.all = before if same else None
        self.some: list[tuple[Holder, Holder]] = []
        if self.all is None:
            each = before.each()
            first = len(each) - hooks
            safe = [(holder, _safe(holder, own)) for holder, own in each[:first]]
            self.some = [*safe, *each[first:]]

    def restore(self) -> Attributes:
        """Restore the attributes of the call, and return those that are there now."""
        if self.all is not None and self.all.unchanged():
            return self.all
        present = Attributes(self.holders)
        for holder, own in self.some if self.all is None else self.all.each():
            found = {name: _alive(value) for name, value in own.items()}
            there = [(k, v) for k, v in found.items() if v is not KEEP or k in holder]
            _fill(holder, {k: holder[k] if v is KEEP else v for k, v in there})
        return present


def has_no_graph(value: object) -> bool:
    """Return whether a value certainly holds no graph."""
    return isinstance(value, WITHOUT_GRAPH) or (
        isinstance(value, Tensor) and not value.requires_grad
    )


def _values(holders: Sequence[Holder]) -> chain[Any]:
    return chain.from_iterable(map(dict.values, holders))


def _safe(holder: Holder, before: Holder) -> Holder:
    """Return what did not change or certainly has no graph; `KEEP` for the rest."""
    return {
        name: _held(value) if holder.get(name) is value or has_no_graph(value) else KEEP
        for name, value in before.items()
    }


def _held(value: object) -> object:
    if isinstance(value, Tensor) and has_graph(value):
        return TensorWeakRef(value)
    return value


def _alive(value: object) -> object:
    if not isinstance(value, TensorWeakRef):
        return value
    tensor = value()
    return KEEP if tensor is None else tensor


def has_graph(value: object) -> bool:
    """Return whether a value is a tensor with a graph."""
    return isinstance(value, Tensor) and value.grad_fn is not None


def _fill(holder: Holder, own: Holder) -> None:
    """Replace the content of a dictionary, and keep the order of `own`."""
    for name in holder.keys() - own.keys():
        del holder[name]
    holder.update(own)
    if [*holder] != [*own]:
        holder.clear()
        holder.update(own)
