"""Locks of modules that several threads share.

A replay puts other parameters into the modules of a layer for as long as it runs.
Another thread that evaluated the layer meanwhile would read them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

_locks: dict[ref[nn.Module], threading.RLock] = {}


class Locks:
    """Hold all modules of a layer for as long as a block runs.

    Modules that are first seen together share a lock. A module may be part of several
    layers, which then wait for each other. All threads take the locks in the same
    order, so that no two wait for each other for ever.

    Args:
        parts: The modules.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        known = {*map(_locks.get, map(ref, parts))}
        if None in known:
            new = threading.RLock()
            # another thread may have added a part since: `setdefault` is atomic
            known = {_locks.setdefault(ref(part, _forget), new) for part in parts}
        self.locks = sorted(filter(None, known), key=id)

    def __enter__(self) -> None:
        for lock in self.locks:
            lock.acquire()

    def __exit__(self, *_: object) -> None:
        for lock in self.locks:
            lock.release()


def _forget(part: ref[nn.Module], locks: dict[Any, Any] = _locks) -> None:
    locks.pop(part, None)


def gradient_accumulators(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what keeps the gradient accumulators of leaves alive, if threads run.

    PyTorch makes the accumulator of a leaf when a graph first asks for it, under a lock
    of the leaf, and may wait for the interpreter meanwhile. A custom function asks for
    it while it holds the interpreter, and both would wait for ever. An operator asks
    without holding it, and as long as its result lives nobody makes another one.
    """
    if threading.active_count() == 1:
        return []
    with torch.enable_grad():
        return [t.view_as(t) for t in tensors if t.requires_grad and t.is_leaf]
