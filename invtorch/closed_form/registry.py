"""The registry of closed forms.

A closed form computes the same as a module, from tensors only, and differentiates it
without autograd. The engine looks up the closed form of every layer that it records. If
there is none, autograd differentiates the layer, with the same results.

A module has a closed form only if it is as its class made it: of this very class, with
the parameters and submodules that the constructor registers, without buffers, and with
no attribute in the place of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from invtorch import _torch
from invtorch.closed_form.members import Members

Make = TypeVar("Make", bound=Callable[[Any, Tensor], Any])


class _Entry(NamedTuple):
    """A function that makes closed forms of a class, and what its modules are made of.

    Attributes:
        make: Makes the closed form of a module.
        methods: The methods of the class whose results it computes.
        members: What the constructor of the class makes.
    """

    make: Callable[[Any, Tensor], Any]
    methods: tuple[object, ...]
    members: Members


_ENTRIES: dict[type[nn.Module], _Entry] = {}


def register(
    *kinds: type[nn.Module],
    parameters: Iterable[str] = (),
    submodules: Iterable[str] | None = (),
) -> Callable[[Make], Make]:
    """Register a function that makes the closed forms of modules of these classes.

    The function receives the module and a state. It returns a `Function` for a
    conditioner, a `Shift` for a layer, or `None` if there is no closed form for the
    options of the module. It is not called for subclasses: they may override `forward`.
    It is not called either for a module that is not as its constructor made it.

    Args:
        kinds: The classes.
        parameters: The names of the parameters that their constructors register.
        submodules: The names of the submodules, or `None` if they can be any.
    """

    def add(make: Make) -> Make:
        for kind in kinds:
            members = Members.of(kind, parameters, submodules)
            _ENTRIES[kind] = _Entry(make, _methods(kind), members)
        return make

    return add


def closed_form(module: nn.Module, state: Tensor) -> Any:
    """Return the closed form of a module, or `None`.

    It is a `Shift` for a layer and a `Function` for a conditioner, and holds the
    current parameters of the module. The caller checks for hooks and autocast.

    Args:
        module: The module.
        state: The input of the layer, or a tensor with the same number of dimensions.
    """
    kind = type(module)
    if kind not in _ENTRIES:
        kind = type_before_parametrizations(module)
    entry = _ENTRIES.get(kind)
    # a method that was replaced in the class may compute something else
    if entry is None or entry.methods != _methods(type(module)):
        return None
    return entry.make(module, state) if entry.members.fit(module) else None


@contextmanager
def without_closed_forms(*kinds: type[nn.Module]) -> Iterator[None]:
    """Disable the closed forms of these classes, or of all classes if none is given.

    This affects all threads. It is meant for tests and benchmarks.
    """
    removed = {k: _ENTRIES.pop(k) for k in kinds or [*_ENTRIES] if k in _ENTRIES}
    try:
        yield
    finally:
        _ENTRIES.update(removed)


def _methods(kind: type[nn.Module]) -> tuple[object, ...]:
    return kind.forward, kind.__call__, getattr(kind, _torch.CONVOLVE, None)
