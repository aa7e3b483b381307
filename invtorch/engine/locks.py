"""One thread at a time evaluates a module: a replay lends it other parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


class Locks:
    """Hold all modules of a layer for as long as a block runs.

    A module may be part of several layers, which then wait for each other: all threads
    take the locks in the same order.

    Args:
        parts: The modules.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self.locks = [
            _locks.get(part) or _locks.setdefault(part, threading.RLock())
            for part in sorted(parts, key=id)
        ]

    def __enter__(self) -> None:
        for lock in self.locks:
            lock.acquire()

    def __exit__(self, *_: object) -> None:
        for lock in self.locks:
            lock.release()
