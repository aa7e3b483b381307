"""Networks as functions of tensors, with derivatives written by hand."""

from invtorch.pure.binding import bind
from invtorch.pure.function import (
    Gradients,
    Pullback,
    PureFunction,
    Shift,
    ShiftPullback,
)

__all__ = [
    "Gradients",
    "Pullback",
    "PureFunction",
    "Shift",
    "ShiftPullback",
    "bind",
]
