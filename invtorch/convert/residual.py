"""The network that a residual block adds to its input."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from invtorch._torch import versions


class _Collecting(threading.local):
    rest: list[tuple[Any, ...]] | None = None


_collecting = _Collecting()


@contextmanager
def rest_collected() -> Iterator[list[tuple[Any, ...]]]:
    """Collect what blocks return besides the state, in a forward pass only.

    A replay in the backward pass happens outside of this context.
    """
    previous, _collecting.rest = _collecting.rest, []
    try:
        yield _collecting.rest
    finally:
        _collecting.rest = previous


class Residual(nn.Module):
    r"""The function $f$ of a block that returns $x + f(x)$, or $f(x)$ alone.

    Args:
        name: The name of the block in messages.
        block: The block.
        residual: Whether the block adds its input.
        output: Which of several outputs is the state.
    """

    def __init__(self, name: str, block: nn.Module, residual: bool, output: int):
        super().__init__()
        self.name = name
        self.block = block
        self.residual = residual
        self.output = output

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        """Evaluate the block, and subtract its input if the block adds it.

        Raises:
            ValueError: If the block changes the shape, or its input in place.
        """
        tracing = torch.compiler.is_compiling()
        before = None if tracing else versions([x])
        y = state_of(self.name, self.block(x, *context, **named), self.output)
        if not tracing and versions([x]) != before:
            raise ValueError(
                f"block {self.name} modifies its input in place: return a new tensor "
                f"(look for `inplace=True` in its first modules)"
            )
        if y.shape != x.shape:
            raise ValueError(
                f"block {self.name} changes the shape from {tuple(x.shape)} to "
                f"{tuple(y.shape)}, but did not at the first call: leave it out"
            )
        return y - x if self.residual else y


def state_of(name: str, returned: Any, output: int) -> Tensor:
    """Return the state among the outputs of a block.

    Raises:
        TypeError: If it is not a tensor.
    """
    state = returned
    if isinstance(returned, tuple):
        if not -len(returned) <= output < len(returned):
            raise TypeError(
                f"block {name} returned {len(returned)} values, but output is "
                f"{output}: give the index of the state"
            )
        place = output % len(returned)
        state = returned[place]
        if _collecting.rest is not None:
            others = (*returned[:place], *returned[place + 1 :])
            _collecting.rest[:] = [tuple(map(_detached, others))]
    if not isinstance(state, Tensor):
        raise TypeError(
            f"block {name} returned a {type(state).__name__}, but a block must return "
            f"a tensor, or a tuple with one at `output`"
        )
    return state


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
