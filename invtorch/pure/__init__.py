"""Networks as functions of tensors, with derivatives written by hand."""

from invtorch.pure.binding import bind, binds
from invtorch.pure.function import (
    Gradients,
    Pullback,
    PureFunction,
    Shift,
    ShiftPullback,
)
from invtorch.pure.standard import Convolution

__all__ = [
    "Convolution",
    "Gradients",
    "Pullback",
    "PureFunction",
    "Shift",
    "ShiftPullback",
    "bind",
    "binds",
]
