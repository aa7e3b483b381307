"""Locks of modules that several threads share.

A replay replaces the parameters in the modules of a layer while it runs. Another thread
that evaluated the layer at the same time would read the replaced parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from invtorch.replay import alias_of

_locks: dict[ref[nn.Module], threading.RLock] = {}


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
    """Return views that keep the gradient accumulators of leaves alive, if threads run.

    PyTorch creates the gradient accumulator of a leaf when a graph first needs it. It
    holds a lock of the leaf meanwhile, and may wait for Python's global interpreter
    lock (GIL). A custom autograd function needs the accumulator while it holds the GIL,
    so that two threads could deadlock. A built-in operator such as `view_as` does not
    hold the GIL. While its result exists, the accumulator exists too.
    """
    if threading.active_count() == 1:
        return []
    with torch.enable_grad():
        return [alias_of(t) for t in tensors if t.requires_grad and t.is_leaf]
