"""Locks of modules that several threads share.

A replay replaces the parameters in the modules of a layer while it runs. Another thread
that evaluated the layer at the same time would read the replaced parameters.

A layer may itself evaluate modules in other threads and wait for them: in a pool of
threads, or by `torch.autograd.grad`, whose backward pass runs in a thread of the GPU.
These threads would wait for the locks of the layer for ever. A lock whose owner waits
for other threads is therefore lent.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn

from invtorch._torch import RUN_BACKWARD, backward_id
from invtorch.recording import nodes_ignored
from invtorch.replay import alias_of

# functions of `threading` that return at once
AT_ONCE = (
    "is_set",
    "is_alive",
    "locked",
    "set",
    "clear",
    "notify",
    "release",
    "get_ident",
)
POLL = 0.002  # seconds between two looks at what the owner of a lock does


class Lock:
    """A reentrant lock that its owner lends while it waits for other threads.

    Attributes:
        changed: Whether the owner has exchanged what the lock protects. Then the lock
            is not lent: an unrelated thread would read what is not meant for it.
    """

    waiting: ClassVar[dict[int, Lock]] = {}  # the lock that each thread waits for
    living: ClassVar[WeakSet[Lock]] = WeakSet()

    def __init__(self) -> None:
        self.living.add(self)
        self._free()

    def _free(self) -> None:
        """Begin as a lock that no thread holds."""
        self.lock: Any = threading.RLock()
        self.owner: int | None = None
        self.count = 0
        self.changed = False
        self.lends = 0  # how often it was lent
        self.hold = object()  # another one each time that the lock is acquired
        self.lent: dict[int, object] = {}  # the threads that it is lent to, by hold

    def __enter__(self) -> None:
        thread = threading.get_ident()
        if self.lock.acquire(blocking=False) or self._wait(thread):
            if not self.count:
                self.owner, self.hold = thread, object()
            self.count += 1

    def __exit__(self, *_: object) -> None:
        if self.owner != threading.get_ident():
            return  # it was lent
        self.count -= 1
        if not self.count:
            self.owner, self.changed = None, False
            self.lent.clear()
        self.lock.release()

    def _wait(self, thread: int) -> bool:
        """Wait until the lock is acquired, or return false if it is lent.

        Raises:
            RuntimeError: If its owner waits for other threads and cannot lend it.
        """
        self.waiting[thread], seen = self, None
        try:
            while self.lent.get(thread) is not self.hold:
                if self.lock.acquire(timeout=POLL):
                    return True
                hold, owner = self.hold, self.owner
                place = None if owner is None else _place(owner, thread)
                if place is not None and place == seen:
                    self._lend(thread, hold)
                seen = place
            return False
        finally:
            del self.waiting[thread]

    def _lend(self, thread: int, hold: object) -> None:
        if self.changed:
            raise RuntimeError(
                "a module is evaluated by a thread while another one replays it and "
                "waits: evaluate it in one thread, or set memory='store' outside"
            )
        self.lent[thread] = hold
        self.lends += 1

    @classmethod
    def forget_other_threads(cls) -> None:
        """Free, in a forked process, what threads hold that it does not have."""
        cls.waiting.clear()
        for lock in list(cls.living):
            if isinstance(lock.lock, Lost):
                continue
            if lock.lock.acquire(blocking=False):
                lock.lock.release()
                continue
            changed = lock.changed
            lock._free()
            lock.lock = Lost() if changed else lock.lock


class Lost:
    """Stands for the lock of modules that nobody will change back."""

    def acquire(self, **_: Any) -> bool:
        """Refuse to evaluate them.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "the process was forked while another thread replayed this layer: fork "
            "before that thread trains, or start processes by `spawn`"
        )


def in_forked_processes(function: Callable[[], None]) -> None:
    """Call a function at the start of every forked process, where there are any."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


in_forked_processes(Lock.forget_other_threads)


def _place(owner: int, thread: int) -> object:
    """Return where the owner of a lock waits for other threads, `None` if it does not.

    It is compared with the place a moment later.
    """
    ahead, seen = Lock.waiting.get(owner), {owner}
    while ahead is not None and ahead.owner is not None and ahead.owner not in seen:
        if ahead.owner == thread:
            return ahead
        seen.add(ahead.owner)
        ahead = Lock.waiting.get(ahead.owner)
    frame = sys._current_frames().get(owner)
    if frame is None or not waits(frame.f_code.co_filename, frame.f_code.co_name):
        return None
    return id(frame), frame.f_lasti


def waits(file: str, function: str) -> bool:
    """Return whether a function waits for other threads, seen from this thread.

    All classes of `threading` and `concurrent.futures` wait in `threading`. The engine
    of autograd waits for threads that it started, which have no Python object.
    """
    if (file, function) in RUN_BACKWARD:
        dummy = type(threading.current_thread()).__name__ == "_DummyThread"
        return dummy and backward_id() != -1
    return file == threading.__file__ and function not in AT_ONCE


_locks: dict[ref[nn.Module], Lock] = {}


class Locks:
    """Context manager that locks all modules of a layer.

    Modules that are first seen together share a lock. A module may be part of several
    layers, which then wait for each other. All threads acquire the locks in the same
    order, by `id`, so that they cannot deadlock. The locks are reentrant, because a
    layer may be evaluated inside a layer that shares a module with it.

    Args:
        parts: The modules.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        known = {*map(_locks.get, map(ref, parts))}
        if None in known:
            new = Lock()
            # another thread may have added a part since: `setdefault` is atomic
            known = {_locks.setdefault(ref(part, _forget), new) for part in parts}
        self.locks = sorted(filter(None, known), key=id)

    def __enter__(self) -> None:
        for i, lock in enumerate(self.locks):
            try:
                lock.__enter__()
            except BaseException:
                for acquired in self.locks[:i]:
                    acquired.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        for lock in self.locks:
            lock.__exit__()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Return a context in which the locks are not lent to other threads."""
        before = [lock.changed for lock in self.locks]
        for lock in self.locks:
            lock.changed = True
        try:
            yield
        finally:
            for lock, changed in zip(self.locks, before, strict=True):
                lock.changed = changed


def _forget(part: ref[nn.Module], locks: dict[Any, Any] = _locks) -> None:
    locks.pop(part, None)


def gradient_accumulators(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return views that keep the gradient accumulators of leaves alive, if threads run.

    PyTorch creates the gradient accumulator of a leaf when a graph first needs it. It
    holds a lock of the leaf meanwhile, and may wait for Python's global interpreter
    lock (GIL). A custom autograd function needs the accumulator while it holds the GIL,
    so that two threads could deadlock. A built-in operator such as `view_as` does not
    hold the GIL. While its result exists, the accumulator exists too.
    """
    if threading.active_count() == 1:
        return []
    with torch.enable_grad(), nodes_ignored():
        return [alias_of(t) for t in tensors if t.requires_grad and t.is_leaf]
