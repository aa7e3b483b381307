"""From a module to the pure function that it is, if it is one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def bind(module: nn.Module, state: Tensor) -> Any:
    """Return a layer as a `Shift`, a conditioner as a `PureFunction`, or `None`.

    The function holds the parameters that the module has now. Whether hooks are to be
    called, or precision is to be lowered, is for the caller to see.

    A class says what its modules compute by a method `_pure(state)`, which returns
    `None` where one is set up to do something else. Classes derived from it, whose
    `forward` may be another, do not inherit it.

    Args:
        module: The module.
        state: The state that a layer is given, or one of the same rank.
    """
    binder = vars(type(module)).get("_pure")
    return binder(module, state) if binder else None
