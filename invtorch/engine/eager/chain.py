"""Passes one after another, each with the output of the one before as its input.

In `b(a(x))`, as in an `nn.Sequential` of containers, each pass would keep its input,
and memory would grow with the number of containers. Since `b` can rebuild its input, it
need not keep it, and the tape of `a` asks that of `b` for its last state. A limited
number of these states is kept all the same, as anchors: every one at first, then every
second, every fourth and so on, so that there are never more than the limit.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol
from weakref import ReferenceType, ref


class TapeLike(Protocol):
    """What a chain needs of a tape."""

    def forget_input(self) -> None:
        """Do not keep the input any more."""


class Kept(NamedTuple):
    """A pass whose input is kept, and its number in the chain."""

    number: int
    tape: ReferenceType[TapeLike]


class Chain:
    """Passes one after another, and which of their inputs are kept.

    It holds weak references: a tape lives as long as its nodes.

    Args:
        limit: How many are kept at most, besides the input of the first pass.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.stride = 1
        self.kept: list[Kept] = []

    def extend(self, tape: TapeLike) -> bool:
        """Add a pass, and return whether its input is kept."""
        self.count += 1
        if not self.limit or self.count % self.stride:
            return False
        self.kept.append(Kept(self.count, ref(tape)))
        if len(self.kept) > self.limit:
            self._keep_fewer()
        return bool(self.kept) and self.kept[-1].number == self.count

    def _keep_fewer(self) -> None:
        """Double the distance between the inputs that are kept."""
        self.stride *= 2
        candidates, self.kept = self.kept, []
        for kept in candidates:
            tape = kept.tape()
            if kept.number % self.stride == 0:
                self.kept.append(kept)
            elif tape is not None:
                tape.forget_input()
