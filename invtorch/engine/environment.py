"""What a layer reads besides its arguments, and how to bring it back for a replay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invtorch.engine.randomness import RandomStates, moved, random_states, rewound
from invtorch.functional import autocast_enabled


class Slot(NamedTuple):
    """A place in a module that holds a parameter or a buffer, and what it held."""

    holder: dict[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` is what stands there now."""
        return self.holder.get(self.name) is tensor


class Environment:
    """The surroundings of one call: random numbers, precision, parameters, buffers.

    `observed()` wraps the forward pass and keeps what it changed; `restored()` brings
    everything back for a replay, so that dropout repeats its mask, running statistics
    move once, and parameters are those of the forward pass even where
    `torch.func.functional_call` has ended since.
    """

    def __init__(self, parts: Iterable[nn.Module], device: torch.device) -> None:
        self.device = device
        self.autocast = _autocast(device)
        self.modes: list[tuple[nn.Module, bool]] = []
        self.parameters: list[Slot] = []
        self.buffers: list[Slot] = []
        self.drawn_from: RandomStates = {}
        for part in parts:
            self.modes.append((part, part.training))
            self.parameters += _slots(part._parameters)
            self.buffers += _slots(part._buffers)

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Keep the random state and the buffers that the call inside changes."""
        states = random_states(self.device)
        copies = [slot.tensor.clone() for slot in self.buffers]
        with weight_caches_off():
            yield
        self.drawn_from = moved(states)
        self.buffers = [
            slot if _untouched(slot, copy) else slot._replace(tensor=copy, version=0)
            for slot, copy in zip(self.buffers, copies, strict=True)
        ]

    @contextmanager
    def restored(self, stand_ins: dict[Tensor, Tensor]) -> Iterator[None]:
        """Bring the surroundings back.

        Args:
            stand_ins: What takes the place of a parameter of the forward pass.
        """
        with ExitStack() as stack:
            if self.drawn_from:
                stack.enter_context(rewound(self.drawn_from))
            if _autocast(self.device) != self.autocast:
                stack.enter_context(torch.autocast(self.device.type, **self.autocast))
            stack.enter_context(weight_caches_off())
            stack.enter_context(_swapped(self._changes(stand_ins)))
            stack.enter_context(_in_modes(self.modes))
            yield

    def written(self) -> str | None:
        """Name a parameter that was changed in place since the call began."""
        return _changed(self.parameters)

    def modified(self) -> str | None:
        """Name a parameter or buffer changed in place since the forward pass."""
        return _changed(self.parameters) or _changed(self.buffers)

    def _changes(self, stand_ins: dict[Tensor, Tensor]) -> list[tuple[Slot, Tensor]]:
        parameters = [(s, stand_ins.get(s.tensor, s.tensor)) for s in self.parameters]
        return [
            *[(s, t) for s, t in parameters if not s.holds(t) and not _sharded(s, t)],
            *[(s, s.tensor.clone()) for s in self.buffers if not s.holds(s.tensor)],
        ]


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


def _slots(holder: dict[str, Any]) -> list[Slot]:
    return [
        Slot(holder, name, tensor, version(tensor))
        for name, tensor in holder.items()
        if tensor is not None
    ]


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


@contextmanager
def _in_modes(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    changed = [(module, mode) for module, mode in modes if module.training != mode]
    for module, mode in changed:
        module.training = mode
    try:
        yield
    finally:
        for module, mode in changed:
            module.training = not mode


@contextmanager
def weight_caches_off() -> Iterator[None]:
    """Let no weight that was computed without a graph be found in a cache later."""
    autocast = torch.is_autocast_cache_enabled()
    parametrizations = parametrize._cache_enabled
    torch.set_autocast_cache_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(autocast)
        parametrize._cache_enabled = parametrizations
