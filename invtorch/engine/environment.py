"""What a layer reads besides its arguments, and how to bring it back for a replay."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invtorch.engine.randomness import RandomStates, moved, random_states, rewound
from invtorch.functional import autocast_enabled

PLAIN = (int, float, complex, str, type(None))
Attributes = dict[str, Any]


class Slot(NamedTuple):
    """A place in a module that holds a tensor, and what it held."""

    holder: dict[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` is what stands there now."""
        return self.holder.get(self.name) is tensor


class Environment:
    """The surroundings of one call: random numbers, precision, what modules hold.

    `observed()` wraps the forward pass and keeps what it changed; `restored()` brings
    everything back for a replay, so that dropout repeats its mask, running statistics
    move once, and parameters are those of the forward pass even where
    `torch.func.functional_call` has ended since.

    So are other attributes of the modules, such as their training mode, and what a
    replay writes into them is undone. Tensors and objects that the forward pass itself
    exchanged are not kept: they may hold the graph of the pass before.
    """

    def __init__(self, parts: Iterable[nn.Module], device: torch.device) -> None:
        self.device = device
        self.autocast = _autocast(device)
        self.parts = [*parts]
        self.parameters: list[Slot] = []
        self.buffers: list[Slot] = []
        self.tensors: list[Slot] = []
        self.attributes: list[tuple[Attributes, Attributes]] = []
        self.drawn_from: RandomStates = {}
        for part in self.parts:
            if part._parameters:
                self.parameters += _slots(part._parameters, part._parameters)
            if part._buffers:
                self.buffers += _slots(part._buffers, part._buffers)

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Keep random state, buffers and attributes that the call inside changes."""
        states = random_states(self.device)
        copies = [slot.tensor.clone() for slot in self.buffers]
        before = [(vars(part), vars(part).copy()) for part in self.parts]
        tensors = [slot for holder, own in before for slot in _slots(holder, own)]
        with WeightCachesOff():
            yield
        self.attributes = [
            (holder, own if _same(holder, own) else _left(holder, own))
            for holder, own in before
        ]
        self.tensors = [slot for slot in tensors if slot.holds(slot.tensor)]
        self.drawn_from = moved(states)
        self.buffers = [
            slot if _untouched(slot, copy) else slot._replace(tensor=copy, version=0)
            for slot, copy in zip(self.buffers, copies, strict=True)
        ]

    @contextmanager
    def restored(self, stand_ins: dict[int, Tensor]) -> Iterator[None]:
        """Bring the surroundings back.

        Args:
            stand_ins: What takes the place of a parameter, found by its `id`.
        """
        with ExitStack() as stack:
            if self.drawn_from:
                stack.enter_context(rewound(self.drawn_from))
            if _autocast(self.device) != self.autocast:
                stack.enter_context(torch.autocast(self.device.type, **self.autocast))
            changes = self._changes(stand_ins)
            if changes:
                stack.enter_context(_swapped(changes))
            stack.enter_context(WithAttributes(self.attributes))
            with WeightCachesOff():
                yield

    def written(self) -> str | None:
        """Name a parameter that was changed in place since the call began."""
        return _changed(self.parameters)

    def overwritten(self) -> str | None:
        """Name an attribute, neither parameter nor buffer, that was changed so."""
        return _changed(self.tensors)

    def modified(self) -> str | None:
        """Name a tensor of a module changed in place since the forward pass."""
        return _changed(self.parameters) or _changed(self.buffers) or self.overwritten()

    def _changes(self, stand_ins: dict[int, Tensor]) -> list[tuple[Slot, Tensor]]:
        changes = []
        for slot in self.parameters:
            tensor = stand_ins.get(id(slot.tensor), slot.tensor)
            if not slot.holds(tensor) and not _sharded(slot, tensor):
                changes.append((slot, tensor))
        for slot in self.buffers:
            if not slot.holds(slot.tensor):
                changes.append((slot, slot.tensor.clone()))
        return changes


def version(tensor: Tensor) -> int:
    """Return how often `tensor` was changed in place (never, under inference mode)."""
    return 0 if tensor.is_inference() else tensor._version


def _changed(slots: list[Slot]) -> str | None:
    for slot in slots:
        if version(slot.tensor) != slot.version:
            return slot.name
    return None


def _untouched(slot: Slot, copy: Tensor) -> bool:
    """Tell whether a buffer is surely what it was.

    Batch normalization moves its statistics without counting that as a change. To look
    at the values costs nothing on the CPU; elsewhere it would wait for the device, and
    the copy is kept.
    """
    if version(slot.tensor) != slot.version:
        return False
    return copy.device.type == "cpu" and torch.equal(copy, slot.tensor)


def _slots(holder: Attributes, values: Attributes) -> list[Slot]:
    return [
        Slot(holder, name, tensor, version(tensor))
        for name, tensor in values.items()
        if isinstance(tensor, Tensor)
    ]


def _same(holder: Attributes, before: Attributes) -> bool:
    """Tell whether a module has the very attributes it had."""
    values = map(operator.is_, holder.values(), before.values())
    return [*holder] == [*before] and all(values)


def _left(holder: Attributes, before: Attributes) -> Attributes:
    """Return the attributes that were left alone, and numbers, words and `None`."""
    return {
        name: value
        for name, value in before.items()
        if holder.get(name) is value or isinstance(value, PLAIN)
    }


def _sharded(slot: Slot, tensor: Tensor) -> bool:
    """Tell whether FSDP keeps a shard there now: it alone may exchange that."""
    current = slot.holder.get(slot.name)
    return hasattr(current, "device_mesh") and not hasattr(tensor, "device_mesh")


def _autocast(device: torch.device) -> dict[str, Any]:
    enabled = autocast_enabled(device.type)
    return {
        "enabled": enabled,
        "dtype": torch.get_autocast_dtype(device.type) if enabled else None,
    }


@contextmanager
def _swapped(changes: list[tuple[Slot, Tensor]]) -> Iterator[None]:
    present = [slot.holder.get(slot.name) for slot, _ in changes]
    for slot, stand_in in changes:
        slot.holder[slot.name] = stand_in
    try:
        yield
    finally:
        for (slot, _), tensor in zip(changes, present, strict=True):
            slot.holder[slot.name] = tensor


class WithAttributes:
    """Give modules back the attributes of the forward pass, and undo what is written.

    Args:
        attributes: The attributes of modules now, and those of the forward pass.
    """

    def __init__(self, attributes: list[tuple[Attributes, Attributes]]) -> None:
        self.attributes = attributes

    def __enter__(self) -> None:
        self.present = []
        for holder, before in self.attributes:
            if _same(holder, before):
                self.present.append((holder, before))
            else:
                self.present.append((holder, holder.copy()))
                holder.update(before)

    def __exit__(self, *_: object) -> None:
        for holder, own in self.present:
            if not _same(holder, own):
                holder.update(own)
                for name in holder.keys() - own.keys():
                    del holder[name]


class WeightCachesOff:
    """Let no weight that was computed without a graph be found in a cache later."""

    def __enter__(self) -> None:
        self.autocast = torch.is_autocast_cache_enabled()
        self.parametrizations = parametrize._cache_enabled
        torch.set_autocast_cache_enabled(False)
        parametrize._cache_enabled = 0

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_cache_enabled(self.autocast)
        parametrize._cache_enabled = self.parametrizations
