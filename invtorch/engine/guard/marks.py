"""The marks of the states of a pass."""

from __future__ import annotations

import torch
from torch import Tensor

from invtorch.engine.guard.fingerprint import uncounted

FEW = 8  # a copy of one mark costs as much as a copy of all these


class Marks:
    """Projections of states, in the order in which they are taken.

    Those on the CPU move to memory that memory measurements do not count, a few at a
    time. Those on a device stay there until they are read, so that nothing waits.
    """

    def __init__(self) -> None:
        self.taken: list[Tensor] = []
        self.moved = 0

    def append(self, projections: Tensor) -> None:
        """Add those of one state, shape `(blocks, PROBES)`."""
        self.taken.append(projections)
        if len(self.taken) == self.moved + FEW:
            self.move()

    def move(self) -> None:
        """Move those on the CPU."""
        last = self.taken[self.moved :]
        if last and all(p.device.type == "cpu" for p in last):
            self.taken[self.moved :] = _split(uncounted(torch.cat(last)), last)
        self.moved = len(self.taken)

    def read(self) -> list[Tensor]:
        """Return all of them on the CPU."""
        if self.taken[0].device.type == "cpu":
            return self.taken
        return _split(torch.cat(self.taken).cpu(), self.taken)


def _split(table: Tensor, like: list[Tensor]) -> list[Tensor]:
    return list(table.split([len(one) for one in like]))
