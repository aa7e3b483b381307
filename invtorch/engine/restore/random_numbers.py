"""The random states that a layer may draw from, and what is known about its draws.

A call of a layer may draw from the generators of PyTorch, Python and NumPy, which all
threads share, and from generators of its own. The state of each generator that moved
during a call is set for its replay, and restored afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import nn

from invtorch._torch import DispatchMode
from invtorch.engine.restore.generators import (
    CPU,
    PYTHON_AND_NUMPY,
    Source,
    name_of,
    of_other_libraries,
    same_state,
    set_state,
    state_of,
)
from invtorch.engine.restore.locks import Lock
from invtorch.recording import Around, Network, evaluation_repeated

# Held while a layer that draws, or may draw, is evaluated: draws of two layers must not
# interleave, or neither could be repeated.
DRAWING = Lock()


class Drawn(NamedTuple):
    """A generator that moved during a call.

    Attributes:
        source: The generator.
        before: Its state before the call.
        after: Its state after the call.
    """

    source: Source
    before: Any
    after: Any

    @property
    def is_of_a_device(self) -> bool:
        """Whether the generator is the one of a device that all layers share."""
        return isinstance(self.source, torch.device)

    @property
    def moved(self) -> bool:
        """Return whether the state moved."""
        return not same_state(self.before, self.after)


# --- what is known about a layer ------------------------------------------------------


class Habits:
    """What the calls of a layer, in one direction and mode, have shown so far.

    Attributes:
        known: Whether a call was evaluated.
        draws: Whether one has certainly drawn from a generator of PyTorch.
        suspected: Whether such a generator moved during one, by the layer or by another
            thread, and no replay has told yet.
        several: Whether one evaluated several conditioners, or one several times.
        sources: The generators of Python and NumPy that moved during one.
        written: The buffers that one has written.
    """

    def __init__(self) -> None:
        self.known = False
        self.draws = False
        self.suspected = False
        self.several = False
        self.sources: set[Source] = set()
        self.written: set[Any] = set()

    @property
    def may_draw(self) -> bool:
        """Return whether no other layer may draw while the layer is evaluated."""
        seen = self.draws or self.suspected or bool(self.sources)
        return seen or not self.known


_habits: dict[ref[nn.Module], dict[Any, Habits]] = {}


def habits_of(layer: nn.Module, mode: Any) -> Habits:
    """Return the habits of a layer in a mode."""
    key = ref(layer)
    modes = _habits.get(key)
    if modes is None:
        modes = _habits.setdefault(ref(layer, _forget), {})
    return modes.get(mode) or modes.setdefault(mode, Habits())


def _forget(layer: ref[nn.Module], habits: dict[Any, Any] = _habits) -> None:
    habits.pop(layer, None)


# --- states ---------------------------------------------------------------------------


def states_of(sources: Iterable[Source]) -> list[tuple[Source, Any]]:
    """Return the states of generators, each with its generator."""
    return [(source, state_of(source)) for source in sources]


def changes_of(before: Iterable[tuple[Source, Any]]) -> list[Drawn]:
    """Return the states before and now."""
    return [Drawn(source, state, state_of(source)) for source, state in before]


class RandomStatesKept:
    """Context manager after which the states of generators are as before.

    Args:
        sources: The generators.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources = sources

    def __enter__(self) -> None:
        self.before = states_of(self.sources)

    def __exit__(self, *_: object) -> None:
        self.moved = [one for one in changes_of(self.before) if one.moved]
        for one in self.moved:
            set_state(one.source, one.before)


class StatesSet:
    """Context manager in which generators draw what they drew in the forward pass.

    Their states of now are restored afterwards.

    Args:
        drawn: The generators that moved in the forward pass.
        repeats: Whether the same numbers must be drawn, and not only some of them.

    Raises:
        RuntimeError: If the states at the end are not those of the forward pass.
    """

    def __init__(self, drawn: list[Drawn], repeats: bool) -> None:
        self.drawn = drawn
        self.repeats = repeats

    def __enter__(self) -> None:
        self.present = states_of([one.source for one in self.drawn])
        for one in self.drawn:
            set_state(one.source, one.before)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ends = [state_of(one.source) for one in self.drawn]
        for source, state in self.present:
            set_state(source, state)
        if kind is None and self.repeats:
            for one, end in zip(self.drawn, ends, strict=True):
                check_repeated(one, end)


def check_repeated(drawn: Drawn, end: Any) -> None:
    """Refuse a replay that did not draw as many numbers as the forward pass.

    The generators of Python and NumPy may have been moved by another thread, where the
    layer drew nothing.

    Raises:
        RuntimeError: If it did not.
    """
    if same_state(end, drawn.after):
        return
    foreign = drawn.source in PYTHON_AND_NUMPY and same_state(end, drawn.before)
    if foreign and threading.active_count() > 1:
        return
    raise RuntimeError(
        f"the replay drew other random numbers from {name_of(drawn.source)} than the "
        f"forward pass: draw in one thread at a time, or set memory='store'"
    )


class InverseKept(RandomStatesKept):
    """Context manager as `RandomStatesKept`, which learns whether an inverse draws.

    Args:
        sources: The generators.
        habits: What is known about the inverse.
    """

    def __init__(self, sources: Iterable[Source], habits: Habits) -> None:
        super().__init__(sources)
        self.habits = habits

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.habits.known = True
        for one in self.moved:
            if one.source in PYTHON_AND_NUMPY:
                self.habits.sources.add(one.source)
            else:
                self.habits.draws = True


class DrawsOfConditioners:
    """The random states around each conditioner of a call.

    A replay may evaluate conditioners in another order than the forward pass, as that
    of a `ReversibleBlock` does. Each of them draws what it drew there.

    Args:
        sources: The generators.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources = [*sources]
        self.drawn: list[tuple[Network, list[Drawn]]] = []  # in order

    @contextmanager
    def noted(self, network: Network) -> Iterator[None]:
        """Note what a conditioner draws in the forward pass."""
        before = states_of(self.sources)
        yield
        self.drawn.append((network, changes_of(before)))

    @property
    def matter(self) -> bool:
        """Return whether several conditioners draw, or one does several times."""
        return sum(any(one.moved for one in drawn) for _, drawn in self.drawn) > 1

    def around(self, call: StatesSetIfDrawn | None) -> Around:
        """Return what makes the context of a conditioner in a replay.

        Args:
            call: The context of the whole call, if another thread may have drawn.
        """
        return DrawsRepeated(self.drawn, call).around


class DrawsRepeated:
    """Lets each conditioner of one replay draw what it drew in the forward pass.

    Args:
        drawn: The conditioners of the forward pass, with the states around them.
        call: The context of the whole replay, if another thread may have drawn.
    """

    def __init__(
        self,
        drawn: list[tuple[Network, list[Drawn]]],
        call: StatesSetIfDrawn | None,
    ) -> None:
        self.drawn = drawn
        self.call = call
        self.evaluated: list[Network] = []

    def around(self, network: Network) -> AbstractContextManager[None]:
        """Return the context of a conditioner."""
        drawn = self._drawn_by(network)
        if self.call is None:
            return self._repeated(drawn)
        return self._repeated_if_drawn(drawn, self.call)

    def _drawn_by(self, network: Network) -> list[Drawn]:
        """Return what a conditioner drew, where the replay is now.

        The layer may say which evaluation it repeats. Otherwise those of one network
        come in the order of the forward pass.
        """
        said = evaluation_repeated()
        if said is not None and said < len(self.drawn):
            of, drawn = self.drawn[said]
            if of is network:
                return drawn
        own = [drawn for one, drawn in self.drawn if one is network]
        number = sum(one is network for one in self.evaluated)
        self.evaluated.append(network)
        return own[min(number, len(own) - 1)] if own else []

    @contextmanager
    def _repeated(self, drawn: list[Drawn], devices: bool = True) -> Iterator[None]:
        """Set the states that a conditioner found.

        Where it is evaluated in another order, the generators are afterwards where they
        were behind the last conditioner.

        Args:
            drawn: The states around it.
            devices: Whether the generators of devices are among them.

        Raises:
            RuntimeError: If it does not draw as many numbers then.
        """
        _, last = self.drawn[-1]
        others = [
            (one, end.after)
            for one, end in zip(drawn, last, strict=False)
            if one.moved and (devices or not one.is_of_a_device)
            if not same_state(one.before, state_of(one.source))
        ]
        for one, _ in others:
            set_state(one.source, one.before)
        yield
        for one, end in others:
            check_repeated(one, state_of(one.source))
            set_state(one.source, end)

    @contextmanager
    def _repeated_if_drawn(
        self, drawn: list[Drawn], call: StatesSetIfDrawn
    ) -> Iterator[None]:
        """Do as `_repeated`, where another thread may have moved a device's generator.

        The context of the whole call leaves the conditioner alone.
        """
        of_devices = [one for one in drawn if one.moved and one.is_of_a_device]
        own = StatesSetIfDrawn(of_devices, call.habits, repeats=True)
        with self._repeated(drawn, devices=False), call.paused(), own:
            yield


class StatesSetIfDrawn(DispatchMode):
    """Context manager as `StatesSet`, for calls that may not have drawn at all.

    The state of a generator has moved, but another thread may have moved it. The states
    are set when an operation of this thread first draws. If none does, the generators
    of the other threads are left alone.

    Args:
        drawn: The generators of PyTorch that moved in the forward pass.
        habits: What is known about the layer; it learns whether the layer draws.
        repeats: As for `StatesSet`.
    """

    def __init__(self, drawn: list[Drawn], habits: Habits, repeats: bool) -> None:
        super().__init__()
        self.states: StatesSet | RandomStatesKept = StatesSet(drawn, repeats)
        self.habits = habits
        self.repeats = repeats
        self.drawing = self.is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context in which draws do not set the states."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Set the states before an operation that may draw."""
        kwargs = kwargs or {}
        idle = not (self.drawing or self.is_paused)
        if idle and kwargs.get("generator") is None and _may_draw(func):
            self.drawing = True
            self.states.__enter__()
        return func(*args, **kwargs)

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        super().__exit__(kind, value, traceback)
        self.habits.known = True
        if self.drawing:
            self.habits.draws = True
            self.states.__exit__(kind, value, traceback)
        elif self.repeats and kind is None:
            self.habits.suspected = False


class StatesKeptIfDrawn(StatesSetIfDrawn):
    """Context manager as `RandomStatesKept`, for an inverse that may not draw at all.

    Args:
        sources: The generators of PyTorch.
        habits: What is known about the inverse.
    """

    def __init__(self, sources: Iterable[Source], habits: Habits) -> None:
        super().__init__([], habits, repeats=False)
        self.states = RandomStatesKept(sources)


def _may_draw(operation: Any) -> bool:
    """Return whether an operation draws, or is not one of PyTorch's own."""
    if getattr(operation, "namespace", "") not in ("aten", "prim", "prims"):
        return True
    return torch.Tag.nondeterministic_seeded in operation.tags


@contextmanager
def all_random_states_kept(others: Iterable[Source]) -> Iterator[None]:
    """Restore the random states of PyTorch, Python and NumPy afterwards.

    It replaces `torch.random.fork_rng`, in which threads may deadlock (see
    `generators.py`).

    Args:
        others: Further generators whose states are restored.
    """
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    with RandomStatesKept([CPU, *gpus, *of_other_libraries(), *others]):
        yield


class Quiet:
    """Notices that Python's or NumPy's generator moved where no call has read it.

    Reading their states takes longer than a small layer. So a call reads one only if
    the layer is new or was seen to draw from it. In between, the states are compared at
    the next call that reads them, and at the end of the pass.
    """

    def __init__(self) -> None:
        self.states = dict(states_of(of_other_libraries()))
        self.moved: set[Source] = set()

    def follow(self, read: Iterable[Drawn]) -> None:
        """Compare with the states that a call has read."""
        for one in read:
            if one.source in self.states:
                self._compare(one.source, one.before)
                self.states[one.source] = one.after

    def end(self) -> set[Source]:
        """Return the generators that moved during calls that did not read them."""
        for source in self.states:
            self._compare(source, state_of(source))
        return self.moved

    def _compare(self, source: Source, state: Any) -> None:
        if not same_state(self.states[source], state):
            self.moved.add(source)


class Watched(RandomStatesKept):
    """Context manager that refuses draws from generators which a call did not read.

    Raises:
        RuntimeError: If there are any, unless another thread may have made them.
    """

    def __init__(self, sources: Iterable[Source], habits: Habits) -> None:
        super().__init__(sources)
        self.habits = habits

    def __exit__(self, *error: object) -> None:
        if threading.active_count() > 1:
            return
        super().__exit__(*error)
        for one in self.moved:
            self.habits.sources.add(one.source)
            if error[0] is None:
                raise RuntimeError(
                    f"a layer that drew nothing before drew from {one.source}, and its "
                    f"state was not kept: repeat the forward pass"
                )
