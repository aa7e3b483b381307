"""The marks of the states of a pass."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

FEW = 16  # marks for which memory is allocated at once


class Marks:
    """Projections of states, in the order in which they are taken.

    Those on the CPU are copied into memory of NumPy, which memory measurements do not
    count. Those on a device stay there until they are read, so that nothing waits.
    """

    def __init__(self) -> None:
        self.taken: list[Tensor] = []
        self.free: Tensor | None = None

    def append(self, projections: Tensor) -> None:
        """Add those of one state, shape `(blocks, PROBES)`."""
        on_cpu = projections.device.type == "cpu"
        self.taken.append(self._copied(projections) if on_cpu else projections)

    def read(self) -> list[Tensor]:
        """Return all of them on the CPU."""
        if self.taken[0].device.type == "cpu":
            return self.taken
        table = torch.cat(self.taken).cpu()
        return list(table.split([len(mark) for mark in self.taken]))

    def _copied(self, mark: Tensor) -> Tensor:
        free, count = self.free, len(mark)
        if free is None or len(free) < count or free.dtype != mark.dtype:
            free = uncounted((FEW * count, mark.shape[1]), mark.dtype)
        self.free = free[count:]
        return free[:count].copy_(mark)


def uncounted(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor in memory of NumPy."""
    kind = numpy.float64 if dtype == torch.float64 else numpy.float32
    return torch.from_numpy(numpy.empty(shape, kind))
