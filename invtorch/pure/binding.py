"""From a module to the pure function that it is, if it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

Binder = TypeVar("Binder", bound=Callable[[Any, Tensor], Any])
_BINDERS: dict[type[nn.Module], Callable[[Any, Tensor], Any]] = {}


def binds(*kinds: type[nn.Module]) -> Callable[[Binder], Binder]:
    """Register what binds modules of these classes, which are not ours."""

    def register(binder: Binder) -> Binder:
        _BINDERS.update(dict.fromkeys(kinds, binder))
        return binder

    return register


def bind(module: nn.Module, state: Tensor) -> Any:
    """Return a layer as a `Shift`, a conditioner as a `PureFunction`, or `None`.

    The function holds the parameters that the module has now. Whether hooks are to be
    called, or precision is to be lowered, is for the caller to see.

    A class of ours says what its modules compute by a method `_pure(state)`, which
    returns `None` where one is set up to do something else. Classes derived from it,
    whose `forward` may be another, do not inherit it.

    Args:
        module: The module.
        state: The state that a layer is given, or one of the same rank.
    """
    kind = type(module)
    binder = (
        vars(kind).get("_pure")
        or _BINDERS.get(kind)
        or _BINDERS.get(type_before_parametrizations(module))
    )
    return binder(module, state) if binder else None
