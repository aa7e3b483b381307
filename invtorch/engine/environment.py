"""What a layer reads besides its arguments, and how to bring it back for a replay."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invtorch.engine.attributes import Attributes, Found, Holder, without_graph
from invtorch.engine.randomness import RandomStates, moved, random_states, rewound
from invtorch.engine.tables import Slot, Tables, changed, slots, swapped
from invtorch.functional import autocast_enabled

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)


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
        self.tables = Tables(parts)
        self.tensors: list[Slot] = []
        self.drawn_from: RandomStates = {}
        hooks = [getattr(part, name) for part in parts for name in HOOKS]
        modules = [part._modules for part in parts]
        self.holders: list[Holder] = [*map(vars, parts), *modules, *hooks]
        self.hooks = len(hooks)

    def look(self) -> Sight:
        """See what the call that follows may change."""
        attributes = Attributes(self.holders)
        return Sight(
            random_states(self.device),
            self.tables.copies(),
            slots(attributes.tensors()),
            attributes,
        )

    def keep(self, before: Sight) -> None:
        """Keep the random state, buffers and attributes that the call has changed."""
        self.found = Found(before.attributes, self.hooks)
        self.tensors = [slot for slot in before.tensors if _comes_back(slot)]
        self.drawn_from = moved(before.random)
        self.tables.keep(before.buffers)

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
        changes = self.tables.changes(stand_ins)
        if changes:
            yield swapped(changes)

    def has_same_kinds(self) -> bool:
        """Tell whether its modules have the classes and dictionaries that they had."""
        own = map(operator.is_, map(vars, self.parts), self.holders)
        return [*map(type, self.parts)] == self.kinds and all(own)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of its modules."""
        return [slot.tensor for slot in self.tables.parameters]

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of its modules, those that changed as they were before."""
        return [slot.tensor for slot in self.tables.buffers]

    def written(self) -> str | None:
        """Name a parameter that was changed in place since the call began."""
        return changed(self.tables.parameters)

    def overwritten(self) -> str | None:
        """Name an attribute, neither parameter nor buffer, that was changed so."""
        return changed(self.tensors)

    def modified(self) -> str | None:
        """Name a tensor of a module changed in place since the forward pass."""
        return self.written() or changed(self.tables.buffers) or self.overwritten()


def _comes_back(slot: Slot) -> bool:
    """Tell whether a replay finds a tensor: it is still there, or holds no graph."""
    return slot.holds(slot.tensor) or without_graph(slot.tensor)


def _autocast(device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, or `None` if it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if autocast_enabled(kind) else None


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
