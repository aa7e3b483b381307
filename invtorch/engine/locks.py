"""One thread at a time evaluates a module: a replay lends it other parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

Locks: TypeAlias = "list[threading.RLock]"

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def locks_of(parts: Iterable[nn.Module]) -> Locks:
    """Return a lock for each module, in an order that is the same in all threads.

    A module may be part of several layers, which then wait for each other.
    """
    return [
        _locks.get(part) or _locks.setdefault(part, threading.RLock())
        for part in sorted(parts, key=id)
    ]


@contextmanager
def held(locks: Locks) -> Iterator[None]:
    """Hold all locks inside."""
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield
