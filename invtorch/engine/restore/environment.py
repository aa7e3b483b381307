"""The environment of a call: what a layer reads besides its arguments."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch.engine.restore.generators import (
    PYTHON_AND_NUMPY,
    Source,
    generators_in,
    is_generator,
    of_other_libraries,
    on_devices,
    roots_of,
)
from invtorch.engine.restore.locks import Locks
from invtorch.engine.restore.module_state import (
    Attributes,
    AttributesOfCall,
    Copy,
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
    DRAWING,
    Drawn,
    DrawsOfConditioners,
    Habits,
    InverseKept,
    StatesKeptIfDrawn,
    StatesSet,
    StatesSetIfDrawn,
    Watched,
    changes_of,
    habits_of,
    states_of,
)
from invtorch.precision import autocast_dtype
from invtorch.recording import Conditioners


class Before(NamedTuple):
    """What a call may change, recorded before the call."""

    lends: int
    random: list[tuple[Source, Any]]
    buffers: list[Copy]
    tensors: list[Slot]
    attributes: Attributes


LIBRARIES = ("torch.", "invtorch.")


def is_known(kind: type[nn.Module]) -> bool:
    """Return whether a class of modules is one of PyTorch's or of this library."""
    return kind.__module__.startswith(("torch.nn.", "invtorch."))


def _holds_own_code(part: nn.Module) -> bool:
    """Return whether a module holds a function of others, such as one for a scale."""
    held = [value for value in vars(part).values() if callable(value)]
    return any(
        not isinstance(value, BuiltinFunctionType)  # those of PyTorch have no module
        and not str(getattr(value, "__module__", "")).startswith(LIBRARIES)
        for value in held
    )


class Environment:
    """The environment of one call: random states, autocast, what the modules hold.

    `before()` and `after()` are called around the forward evaluation and record what it
    changed. `restored()` restores the environment for a replay: dropout repeats its
    mask, running statistics are updated once, and parameters are those of the forward
    pass even after `torch.func.functional_call` has ended. Submodules, their hooks and
    other attributes, such as the training mode, are restored too. Changes that a replay
    makes are undone.

    Attributes:
        computed: The attributes and buffers that need a gradient, once the call was
            run: weights that a hook of the layer or a replica computes, for instance.
        hooked_inside: Whether a module inside of the layer has hooks.
        own_code: Whether the layer runs code that is neither PyTorch's nor this
            library's, which may take another branch in a replay.
        own_layer: Whether the layer itself is neither.

    Args:
        parts: The layer and all modules in it.
        device: The device of the state.
        direction: The name of the direction.
        context: The tensors and other objects of the context.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        device: torch.device,
        direction: str,
        context: Sequence[Any] = (),
    ) -> None:
        self.parts = parts
        self.context = generators_in(context)
        mode = direction, *[part.training for part in parts]
        self.habits = habits_of(parts[0], mode)
        self.inverse_habits = habits_of(parts[0], (*mode, "inverse"))
        self.kinds = [*map(type, parts)]
        self.device = device
        self.autocast = autocast_dtype(device.type)
        self.dtype = torch.get_default_dtype()
        self.modes = _torch.function_modes()
        self.module_tensors = ParametersAndBuffers(parts)
        self.tensors: list[Slot] = []
        self.drawn: list[Drawn] = []
        self.read: list[Drawn] = []  # the states of Python and NumPy, if it read them
        self.unread: list[Source] = []  # what may have moved without having been read
        hooks = [one for part in parts for one in _torch.hooks_of(part)]
        modules = [*map(_torch.submodules_of, parts)]
        self.holders: list[Holder] = [*map(vars, parts), *modules, *hooks]
        self.hooks = len(hooks)
        self.hooked_inside = any(hooks[len(_torch.HOOKS) :])
        replaced = any("forward" in vars(part) for part in parts)
        self.own_layer = not is_known(self.kinds[0])
        others = not all(map(is_known, self.kinds))
        given = any(map(_holds_own_code, parts))
        self.own_code = any(hooks) or replaced or others or given
        self.computed: list[Slot] = []
        self.conditioners: DrawsOfConditioners | None = None

    def before(self) -> Before:
        """Record what the next call may change."""
        attributes = Attributes(self.holders)
        held = generators_in(roots_of(self.parts))
        own = [*attributes.instances_of(is_generator), *held, *self.context]
        own = [*{id(one): one for one in own}.values()]
        shared = [*on_devices(self.device), *self._sources(self.habits)]
        return Before(
            DRAWING.lends,
            states_of([*shared, *own]),
            self.module_tensors.copy_buffers(self.habits.written, self.habits.known),
            slots(attributes.tensors()),
            attributes,
        )

    def of_conditioners(self, before: Before) -> AbstractContextManager[None]:
        """Return a context in which what each conditioner draws is noted."""
        sources = [source for source, _ in before.random]
        # what is known of a layer does not count draws from a generator of its own
        own = any(not isinstance(one, (torch.device, str)) for one in sources)
        habits = self.habits
        if not (own or habits.may_draw or habits.several):
            return Conditioners(None)
        self.conditioners = DrawsOfConditioners(sources)
        return Conditioners(self.conditioners.noted)

    def after(self, before: Before) -> str | None:
        """Keep the random states, buffers and attributes that the call changed.

        Returns:
            The name of a tensor attribute that it changed in place, if any.
        """
        self.attributes = AttributesOfCall(before.attributes, self.hooks)
        come_back = [slot for slot in before.tensors if _comes_back(slot)]
        self.tensors = [slot for slot in come_back if not has_graph(slot.tensor)]
        written, known = self.habits.written, self.habits.known
        self.module_tensors.keep_changed(before.buffers, written, known)
        others = (*come_back, *self.module_tensors.buffers)
        self.computed = [slot for slot in others if slot.tensor.requires_grad]
        self._learn(changes_of(before.random), before.lends)
        if self.conditioners:
            self.habits.several |= len(self.conditioners.drawn) > 1
            if not self.conditioners.matter:
                self.conditioners = None
        return changed_in_place(come_back)

    @staticmethod
    def _sources(habits: Habits) -> list[Source]:
        """Return which global generators of other libraries a call reads."""
        return of_other_libraries() if not habits.known else [*habits.sources]

    def _learn(self, changes: list[Drawn], lends: int) -> None:
        """Learn from a call which generators it may have moved."""
        # threads that evaluate layers for this one, and nobody else, draw for it too
        alone = threading.active_count() == 1 or DRAWING.lends > lends
        self.drawn = [one for one in changes if one.moved]
        self.read = [one for one in changes if one.source in PYTHON_AND_NUMPY]
        self.habits.sources |= {one.source for one in self.read if one.moved}
        moved = any(one.is_of_a_device for one in self.drawn)
        self.habits.suspected |= moved
        self.habits.draws |= alone and moved
        self.habits.known = True

    def watch(self, sources: set[Source]) -> None:
        """Refuse a replay that draws from these generators, if the call read none."""
        self.unread = [*sources.difference(one.source for one in self.read)]

    def may_draw(self) -> bool:
        """Return whether no other layer may draw while the layer is evaluated."""
        return self.habits.may_draw or bool(self.drawn)

    def restored(
        self, stand_ins: dict[int, Tensor], locks: Locks, *, inverse: bool = False
    ) -> AbstractContextManager[None]:
        """Return a context in which the environment is restored.

        Args:
            stand_ins: What replaces a tensor of a module, found by its `id`.
            locks: The locks of the modules.
            inverse: Whether the inverse is evaluated in it, which may draw fewer
                numbers than the call, or others.
        """
        contexts = [
            *self._randomness(inverse),
            *self._changed(stand_ins, locks),
            AttributesRestored(self.attributes, locks),
        ]
        places = [(s, stand_ins.get(id(s.tensor))) for s in self.computed]
        changes = [(s.holder, s.name, t) for s, t in places if t is not None]
        if changes:  # after the attributes were restored
            contexts += [locks.changing(), exchanged(changes)]
        return contexts[0] if len(contexts) == 1 else _all(contexts)

    def _randomness(self, inverse: bool) -> Iterator[AbstractContextManager[Any]]:
        """Yield contexts in which the numbers of the call are drawn again."""
        of_devices = [one for one in self.drawn if one.is_of_a_device]
        others = [one for one in self.drawn if not one.is_of_a_device]
        if inverse:
            yield from self._unmoved({one.source for one in of_devices})
        elif self.unread:
            yield Watched(self.unread, self.habits)
        certain = of_devices if self.habits.draws else []
        if others or certain:
            yield StatesSet([*others, *certain], repeats=not inverse)
        call = None
        if of_devices and not certain:  # another thread may have drawn
            call = StatesSetIfDrawn(of_devices, self.habits, repeats=not inverse)
            yield call
        if self.conditioners:
            yield Conditioners(self.conditioners.around(call))

    def _unmoved(
        self, known: set[torch.device]
    ) -> Iterator[AbstractContextManager[Any]]:
        """Yield a context that an inverse leaves unmoved: it may draw too."""
        habits = self.inverse_habits
        devices = [one for one in on_devices(self.device) if one not in known]
        if threading.active_count() == 1 or habits.draws:
            yield InverseKept([*devices, *self._sources(habits)], habits)
        elif not habits.known:
            yield StatesKeptIfDrawn(devices, habits)

    def _changed(
        self, stand_ins: dict[int, Tensor], locks: Locks
    ) -> Iterator[AbstractContextManager[Any]]:
        """Yield contexts for what differs from the forward pass, but attributes."""
        kind = self.device.type
        if autocast_dtype(kind) != self.autocast:
            enabled = self.autocast is not None
            yield torch.autocast(kind, self.autocast, enabled)
        if torch.get_default_dtype() != self.dtype:
            yield _default_dtype_set(self.dtype)
        if _torch.function_modes() != self.modes:
            yield _function_modes_set(self.modes)
        changes = self.module_tensors.changes(stand_ins)
        if changes:
            yield locks.changing()
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

    def lost_buffer(self) -> str | None:
        """Return the name of a buffer of which the call kept no copy, if any."""
        return self.module_tensors.lost

    def changed_tensor(self) -> str | None:
        """Return the name of a tensor changed in place since the call, if any.

        A replay raises an error if it reads a buffer that was changed.
        """
        return self.changed_parameter() or changed_in_place(self.tensors)


def _comes_back(slot: Slot) -> bool:
    """Return whether a replay can use a tensor: it is still there, or has no graph."""
    return slot.holds(slot.tensor) or has_no_graph(slot.tensor)


@contextmanager
def _all(contexts: list[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def _default_dtype_set(dtype: torch.dtype) -> Iterator[None]:
    present = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(present)


@contextmanager
def _function_modes_set(modes: tuple[Any, ...]) -> Iterator[None]:
    present = _torch.function_modes()
    _torch.set_function_modes(modes)
    try:
        yield
    finally:
        _torch.set_function_modes(present)


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

    def __init__(self, attributes: AttributesOfCall, locks: Locks) -> None:
        self.attributes = attributes
        self.locks = locks

    def __enter__(self) -> None:
        self.present = self.attributes.restore()
        self.others = self.present is not self.attributes.all
        if self.others:
            self.changing = self.locks.changing()
            self.changing.__enter__()
        super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.present.restore()
        if self.others:
            self.changing.__exit__(None, None, None)
