"""The one registry of hand-written derivatives: from a module to its closed form.

A closed form is an optional companion of a module: it computes what the module
computes, from tensors alone, and differentiates that without autograd. The engine asks
here for every layer it records. Without an answer it leaves the layer to autograd, with
the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from invtorch import _torch

Make = TypeVar("Make", bound=Callable[[Any, Tensor], Any])


class _Entry(NamedTuple):
    """What makes closed forms of a class, and the methods that it was written for."""

    make: Callable[[Any, Tensor], Any]
    methods: tuple[object, object]


_ENTRIES: dict[type[nn.Module], _Entry] = {}


def register(*kinds: type[nn.Module]) -> Callable[[Make], Make]:
    """Register what makes the closed forms of modules of these classes.

    It is given the module and a state. It returns a `Function` of a conditioner, a
    `Shift` of a layer, or `None` where a module is configured to compute something
    else. It is not asked for derived classes, whose `forward` may be another.
    """

    def add(make: Make) -> Make:
        for kind in kinds:
            _ENTRIES[kind] = _Entry(make, _methods(kind))
        return make

    return add


def closed_form(module: nn.Module, state: Tensor) -> Any:
    """Return a layer as a `Shift`, a conditioner as a `Function`, or `None`.

    The closed form holds the parameters that the module has now. Whether hooks must be
    called, or precision is to be lowered, is for the caller to see.

    Args:
        module: The module.
        state: The state that a layer is given, or one of the same rank.
    """
    kind = type(module)
    if kind not in _ENTRIES:
        kind = type_before_parametrizations(module)
    entry = _ENTRIES.get(kind)
    # a method that was exchanged in the class computes something else
    if entry is None or entry.methods != _methods(kind):
        return None
    return entry.make(module, state)


@contextmanager
def without_closed_forms(*kinds: type[nn.Module]) -> Iterator[None]:
    """Leave modules of these classes to autograd inside, or all if none is given.

    It holds for all threads: it is meant for tests and benchmarks.
    """
    removed = {k: _ENTRIES.pop(k) for k in kinds or [*_ENTRIES] if k in _ENTRIES}
    try:
        yield
    finally:
        _ENTRIES.update(removed)


def _methods(kind: type[nn.Module]) -> tuple[object, object]:
    return kind.forward, getattr(kind, _torch.CONVOLVE, None)
