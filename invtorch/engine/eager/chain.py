"""Passes one after another, each with the output of the one before as its input.

In `b(a(x))`, as in an `nn.Sequential` of containers, each pass would keep its output,
and memory would grow with the number of containers. Since `b` rebuilds its input, the
tape of `a` need not keep it. A limited number of these states is kept all the same, as
anchors: the chain keeps every state at first, then every second, every fourth and so
on, so that there are never more than the limit.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol
from weakref import ReferenceType, ref


class TapeLike(Protocol):
    """What a chain needs of a tape."""

    def link(self, other: Any) -> None:
        """Do not keep the last state any more: the other tape rebuilds it."""


class Boundary(NamedTuple):
    """The state between two passes: its number in the chain, and the two tapes."""

    number: int
    before: ReferenceType[TapeLike]
    after: ReferenceType[TapeLike]

    def link(self) -> None:
        """Let the later tape rebuild the state, unless one of them was freed."""
        before, after = self.before(), self.after()
        if before is not None and after is not None:
            before.link(after)


class Chain:
    """The states between consecutive passes that are kept exactly.

    It holds weak references: a tape lives as long as its nodes.

    Args:
        limit: How many are kept at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.stride = 1
        self.kept: list[Boundary] = []

    def extend(self, before: TapeLike, after: TapeLike) -> None:
        """Add the state between two passes, and link those that are not kept."""
        self.count += 1
        self.kept.append(Boundary(self.count, ref(before), ref(after)))
        self._link_others()
        while len(self.kept) > self.limit:
            self.stride *= 2
            self._link_others()

    def _link_others(self) -> None:
        """Keep the states whose number is a multiple of the stride, link the others."""
        candidates, self.kept = self.kept, []
        for boundary in candidates:
            if self.limit and boundary.number % self.stride == 0:
                self.kept.append(boundary)
            else:
                boundary.link()
