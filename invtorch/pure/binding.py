"""From a module to the pure function that it is, if it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

Make = TypeVar("Make", bound=Callable[[Any, Tensor], Any])


class _Binder(NamedTuple):
    """What binds modules of a class, and the methods that it was written for."""

    make: Callable[[Any, Tensor], Any]
    forward: object
    convolve: object


_BINDERS: dict[type[nn.Module], _Binder] = {}


def binds(*kinds: type[nn.Module]) -> Callable[[Make], Make]:
    """Register what binds modules of these classes.

    It is given the module and a state, and returns a `PureFunction`, a `Shift` of a
    layer, or `None` where a module is set up to do something else. It is not asked for
    classes derived from these, whose `forward` may be another.
    """

    def register(make: Make) -> Make:
        for kind in kinds:
            _BINDERS[kind] = _Binder(make, *_written(kind))
        return make

    return register


def bind(module: nn.Module, state: Tensor) -> Any:
    """Return a layer as a `Shift`, a conditioner as a `PureFunction`, or `None`.

    The function holds the parameters that the module has now. Whether hooks are to be
    called, or precision is to be lowered, is for the caller to see.

    Args:
        module: The module.
        state: The state that a layer is given, or one of the same rank.
    """
    kind = type(module)
    if kind not in _BINDERS:
        kind = type_before_parametrizations(module)
    binder = _BINDERS.get(kind)
    if binder is None or (binder.forward, binder.convolve) != _written(kind):
        return None
    return binder.make(module, state)


def _written(kind: type[nn.Module]) -> tuple[object, object]:
    return kind.forward, getattr(kind, "_conv_forward", None)
