"""What a layer reads besides its arguments, and how a replay finds it again."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch.engine.restore.module_state import (
    Attributes,
    AttributesOfCall,
    Holder,
    ParametersAndBuffers,
    Slot,
    changed_in_place,
    exchanged,
    has_no_graph,
    slots,
)
from invtorch.engine.restore.random_numbers import (
    RandomStates,
    advanced,
    random_states,
    random_states_set,
)
from invtorch.precision import autocast_dtype


class Before(NamedTuple):
    """What a call may change, as it was before the call."""

    random: RandomStates
    buffers: list[Tensor]
    tensors: list[Slot]
    attributes: Attributes


class Environment:
    """The environment of one call: random states, autocast, what the modules hold.

    `before()` and `after()` enclose the forward evaluation and find what it changed.
    `restored()` restores everything for a replay: dropout repeats its mask, running
    statistics move once, and parameters are those of the forward pass even after
    `torch.func.functional_call` has ended. So are the modules inside of others, their
    hooks and other attributes, such as the training mode, and what a replay writes into
    them is undone.

    Args:
        parts: The layer and all modules in it.
        device: The device of the state.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.parts = parts
        self.kinds = [*map(type, parts)]
        self.device = device
        self.autocast = autocast_dtype(device.type)
        self.tables = ParametersAndBuffers(parts)
        self.tensors: list[Slot] = []
        self.drawn_from: RandomStates = {}
        hooks = [one for part in parts for one in _torch.hooks_of(part)]
        modules = [*map(_torch.submodules_of, parts)]
        self.holders: list[Holder] = [*map(vars, parts), *modules, *hooks]
        self.hooks = len(hooks)

    def before(self) -> Before:
        """Note what the call that follows may change."""
        attributes = Attributes(self.holders)
        return Before(
            random_states(self.device),
            self.tables.copy_buffers(),
            slots(attributes.tensors()),
            attributes,
        )

    def after(self, before: Before) -> None:
        """Keep the random states, buffers and attributes that the call has changed."""
        self.attributes = AttributesOfCall(before.attributes, self.hooks)
        self.tensors = [slot for slot in before.tensors if _comes_back(slot)]
        self.drawn_from = advanced(before.random)
        self.tables.keep_changed(before.buffers)

    def restored(self, stand_ins: dict[int, Tensor]) -> AbstractContextManager[None]:
        """Restore the environment inside, and what is there now afterwards.

        Args:
            stand_ins: What replaces a parameter, found by its `id`.
        """
        contexts = [*self._changed(stand_ins), AttributesRestored(self.attributes)]
        return contexts[0] if len(contexts) == 1 else _all(contexts)

    def _changed(
        self, stand_ins: dict[int, Tensor]
    ) -> Iterator[AbstractContextManager[Any]]:
        """Restore what is no attribute of a module, where it has changed."""
        if self.drawn_from:
            yield random_states_set(self.drawn_from)
        kind = self.device.type
        if autocast_dtype(kind) != self.autocast:
            enabled = self.autocast is not None
            yield torch.autocast(kind, self.autocast, enabled)
        changes = self.tables.changes(stand_ins)
        if changes:
            yield exchanged(changes)

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

    def changed_parameter(self) -> str | None:
        """Name a parameter that was changed in place since the call began."""
        return changed_in_place(self.tables.parameters)

    def changed_attribute(self) -> str | None:
        """Name an attribute, neither parameter nor buffer, that was changed so."""
        return changed_in_place(self.tensors)

    def changed_tensor(self) -> str | None:
        """Name any tensor of its modules that was changed in place since."""
        return (
            self.changed_parameter()
            or changed_in_place(self.tables.buffers)
            or self.changed_attribute()
        )


def _comes_back(slot: Slot) -> bool:
    """Tell whether a replay finds a tensor: it is still there, or holds no graph."""
    return slot.holds(slot.tensor) or has_no_graph(slot.tensor)


@contextmanager
def _all(contexts: list[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class WeightCachesOff:
    """Let no weight that was computed without a graph be found in a cache later.

    Autocast keeps the weights that it has cast, and `parametrize.cached()` those that
    were computed.
    """

    def __enter__(self) -> None:
        self.autocast = torch.is_autocast_cache_enabled()
        self.parametrizations = _torch.parametrization_cache()
        torch.set_autocast_cache_enabled(False)
        _torch.set_parametrization_cache(0)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_cache_enabled(self.autocast)
        _torch.set_parametrization_cache(self.parametrizations)


class AttributesRestored(WeightCachesOff):
    """Let modules hold what a call found, and undo whatever is written inside."""

    def __init__(self, attributes: AttributesOfCall) -> None:
        self.attributes = attributes

    def __enter__(self) -> None:
        self.present = self.attributes.restore()
        super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.present.restore()
