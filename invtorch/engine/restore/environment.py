"""The environment of a call: what a layer reads besides its arguments."""

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
    has_graph,
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
    """What a call may change, recorded before the call."""

    random: RandomStates
    buffers: list[Tensor]
    tensors: list[Slot]
    attributes: Attributes


class Environment:
    """The environment of one call: random states, autocast, what the modules hold.

    `before()` and `after()` are called around the forward evaluation and record what it
    changed. `restored()` restores the environment for a replay: dropout repeats its
    mask, running statistics are updated once, and parameters are those of the forward
    pass even after `torch.func.functional_call` has ended. Submodules, their hooks and
    other attributes, such as the training mode, are restored too. Changes that a replay
    makes are undone.

    Args:
        parts: The layer and all modules in it.
        device: The device of the state.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.parts = parts
        self.kinds = [*map(type, parts)]
        self.device = device
        self.autocast = autocast_dtype(device.type)
        self.module_tensors = ParametersAndBuffers(parts)
        self.tensors: list[Slot] = []
        self.drawn_from: RandomStates = {}
        hooks = [one for part in parts for one in _torch.hooks_of(part)]
        modules = [*map(_torch.submodules_of, parts)]
        self.holders: list[Holder] = [*map(vars, parts), *modules, *hooks]
        self.hooks = len(hooks)

    def before(self) -> Before:
        """Record what the next call may change."""
        attributes = Attributes(self.holders)
        return Before(
            random_states(self.device),
            self.module_tensors.copy_buffers(),
            slots(attributes.tensors()),
            attributes,
        )

    def after(self, before: Before) -> str | None:
        """Keep the random states, buffers and attributes that the call changed.

        Returns:
            The name of a tensor attribute that it changed in place, if any.
        """
        self.attributes = AttributesOfCall(before.attributes, self.hooks)
        come_back = [slot for slot in before.tensors if _comes_back(slot)]
        self.tensors = [slot for slot in come_back if not has_graph(slot.tensor)]
        self.drawn_from = advanced(before.random)
        self.module_tensors.keep_changed(before.buffers)
        return changed_in_place(come_back)

    def restored(self, stand_ins: dict[int, Tensor]) -> AbstractContextManager[None]:
        """Return a context in which the environment is restored.

        Args:
            stand_ins: What replaces a parameter, found by its `id`.
        """
        contexts = [*self._changed(stand_ins), AttributesRestored(self.attributes)]
        return contexts[0] if len(contexts) == 1 else _all(contexts)

    def _changed(
        self, stand_ins: dict[int, Tensor]
    ) -> Iterator[AbstractContextManager[Any]]:
        """Yield contexts for random states, autocast, parameters and buffers."""
        if self.drawn_from:
            yield random_states_set(self.drawn_from)
        kind = self.device.type
        if autocast_dtype(kind) != self.autocast:
            enabled = self.autocast is not None
            yield torch.autocast(kind, self.autocast, enabled)
        changes = self.module_tensors.changes(stand_ins)
        if changes:
            yield exchanged(changes)

    def has_same_kinds(self) -> bool:
        """Return whether all modules still have the same class and `__dict__`."""
        own = map(operator.is_, map(vars, self.parts), self.holders)
        return [*map(type, self.parts)] == self.kinds and all(own)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of its modules."""
        return [slot.tensor for slot in self.module_tensors.parameters]

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of its modules, as they were before the call."""
        return [slot.tensor for slot in self.module_tensors.buffers]

    def changed_parameter(self) -> str | None:
        """Return the name of a parameter changed in place since the call, if any."""
        return changed_in_place(self.module_tensors.parameters)

    def changed_tensor(self) -> str | None:
        """Return the name of any tensor of the modules changed in place, if any."""
        return (
            self.changed_parameter()
            or changed_in_place(self.module_tensors.buffers)
            or changed_in_place(self.tensors)
        )


def _comes_back(slot: Slot) -> bool:
    """Return whether a replay can use a tensor: it is still there, or has no graph."""
    return slot.holds(slot.tensor) or has_no_graph(slot.tensor)


@contextmanager
def _all(contexts: list[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class WeightCachesOff:
    """Disable caches of weights, so that no cached weight lacks its graph later.

    Autocast caches the weights that it casts, and `parametrize.cached()` the weights
    that parametrizations compute.
    """

    def __enter__(self) -> None:
        self.autocast = torch.is_autocast_cache_enabled()
        self.parametrizations = _torch.parametrization_cache()
        torch.set_autocast_cache_enabled(False)
        if self.parametrizations:
            _torch.add_to_parametrization_cache(-self.parametrizations)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_cache_enabled(self.autocast)
        if self.parametrizations:
            _torch.add_to_parametrization_cache(self.parametrizations)


class AttributesRestored(WeightCachesOff):
    """Restore the attributes that a call found, and undo changes made inside."""

    def __init__(self, attributes: AttributesOfCall) -> None:
        self.attributes = attributes

    def __enter__(self) -> None:
        self.present = self.attributes.restore()
        super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.present.restore()
