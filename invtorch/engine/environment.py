"""What a layer reads besides its arguments, and how to bring it back for a replay."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invtorch.engine.attributes import Attributes, Found
from invtorch.engine.randomness import RandomStates, moved, random_states, rewound
from invtorch.functional import autocast_enabled

Place: TypeAlias = tuple[dict[Any, Any], Any, Tensor]


class Slot(NamedTuple):
    """A place in a module that holds a tensor, and what it held."""

    holder: dict[str, Any]
    name: str
    tensor: Tensor
    version: int

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` is what stands there now."""
        return self.holder.get(self.name) is tensor


class Sight(NamedTuple):
    """What is seen right before a call: what it may change."""

    random: RandomStates
    buffers: list[Tensor]
    tensors: list[Slot]
    attributes: Attributes


class Environment:
    """The surroundings of one call: random numbers, precision, what modules hold.

    `look()` before the forward pass and `keep()` after it find what it changed;
    `restored()` brings everything back for a replay, so that dropout repeats its mask,
    running statistics move once, and parameters are those of the forward pass even
    where `torch.func.functional_call` has ended since.

    So are the modules inside of others, their hooks and other attributes, such as the
    training mode, and what a replay writes into them is undone.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.parts = parts
        self.kinds = [*map(type, parts)]
        self.device = device
        self.autocast = _autocast(device)
        self.holders: list[dict[Any, Any]] = []
        self.tensors: list[Slot] = []
        self.drawn_from: RandomStates = {}
        parameters: list[Place] = []
        buffers: list[Place] = []
        for part in parts:
            hooks = part._forward_hooks, part._forward_pre_hooks
            self.holders += (vars(part), part._modules, *hooks)
            if part._parameters:
                parameters += _places(part._parameters)
            if part._buffers:
                buffers += _places(part._buffers)
        self.parameters, self.buffers = _slots(parameters), _slots(buffers)

    def look(self) -> Sight:
        """See what the call that follows may change."""
        attributes = Attributes(self.holders)
        return Sight(
            random_states(self.device),
            [slot.tensor.clone() for slot in self.buffers],
            _slots(attributes.tensors()),
            attributes,
        )

    def keep(self, before: Sight) -> None:
        """Keep the random state, buffers and attributes that the call has changed."""
        self.found = Found(before.attributes)
        self.tensors = [slot for slot in before.tensors if slot.holds(slot.tensor)]
        self.drawn_from = moved(before.random)
        self.buffers = [
            slot if _untouched(slot, copy) else slot._replace(tensor=copy, version=0)
            for slot, copy in zip(self.buffers, before.buffers, strict=True)
        ]

    def restored(self, stand_ins: dict[int, Tensor]) -> AbstractContextManager[None]:
        """Bring the surroundings back.

        Args:
            stand_ins: What takes the place of a parameter, found by its `id`.
        """
        contexts = [*self._elsewhere(stand_ins), AsFound(self.found)]
        return contexts[0] if len(contexts) == 1 else _together(contexts)

    def _elsewhere(
        self, stand_ins: dict[int, Tensor]
    ) -> Iterator[AbstractContextManager[Any]]:
        """Bring back what is not found in the attributes of the modules, if changed."""
        if self.drawn_from:
            yield rewound(self.drawn_from)
        if _autocast(self.device) != self.autocast:
            enabled = self.autocast is not None
            yield torch.autocast(self.device.type, self.autocast, enabled)
        changes = self._changes(stand_ins)
        if changes:
            yield _swapped(changes)

    def has_same_kinds(self) -> bool:
        """Tell whether its modules have the classes and dictionaries that they had."""
        own = map(operator.is_, map(vars, self.parts), self.holders[::4])
        return [*map(type, self.parts)] == self.kinds and all(own)

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


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return how often each was changed in place (never, under inference mode)."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if t.is_inference() else t._version for t in tensors]


def _changed(slots: list[Slot]) -> str | None:
    now = versions([slot.tensor for slot in slots])
    names = (s.name for s, found in zip(slots, now, strict=True) if found != s.version)
    return next(names, None)


def _untouched(slot: Slot, copy: Tensor) -> bool:
    """Tell whether a buffer is surely what it was.

    Batch normalization moves its statistics without counting that as a change. To look
    at the values costs nothing on the CPU; elsewhere it would wait for the device, and
    the copy is kept.
    """
    if versions([slot.tensor]) != [slot.version]:
        return False
    return copy.device.type == "cpu" and torch.equal(copy, slot.tensor)


def _slots(places: Sequence[Place]) -> list[Slot]:
    found = versions([tensor for _, _, tensor in places])
    return [Slot(*place, one) for place, one in zip(places, found, strict=True)]


def _places(holder: dict[str, Any]) -> list[Place]:
    return [(holder, name, t) for name, t in holder.items() if t is not None]


def _sharded(slot: Slot, tensor: Tensor) -> bool:
    """Tell whether FSDP keeps a shard there now: it alone may exchange that."""
    current = slot.holder.get(slot.name)
    return hasattr(current, "device_mesh") and not hasattr(tensor, "device_mesh")


def _autocast(device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, or `None` if it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if autocast_enabled(kind) else None


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


@contextmanager
def _together(contexts: list[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


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


class AsFound(WeightCachesOff):
    """Give modules back what a call found, and undo whatever is written inside."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def __enter__(self) -> None:
        self.present = self.found.give_back()
        super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.present.take_back()
