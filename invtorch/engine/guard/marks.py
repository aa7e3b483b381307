"""The marks of the states of a pass."""

from __future__ import annotations

import torch
from torch import Tensor

AHEAD = 32  # tensors that are made at once


class Marks:
    """Projections of states, in the order in which they are taken.

    Those on a device stay there until they are read, so that nothing waits.
    """

    def __init__(self) -> None:
        self.taken: list[Tensor] = []

    def append(self, projections: Tensor) -> None:
        """Add those of one state, shape `(blocks, PROBES)`."""
        self.taken.append(projections)

    def read(self) -> list[Tensor]:
        """Return all of them on the CPU."""
        if self.taken[0].device.type == "cpu":
            return self.taken
        table = torch.cat(self.taken).cpu()
        return list(table.split([len(mark) for mark in self.taken]))


def uncounted(numbers: Tensor) -> Tensor:
    """Return a copy in memory of NumPy, which is not memory of a pass.

    Numbers on a device are returned as they are.
    """
    if numbers.device.type != "cpu":
        return numbers
    return torch.from_numpy(numbers.numpy().copy())


class Results:
    """Tensors on the CPU that are not memory of a pass, each of them to be taken once.

    They are made in advance, many at a time.

    Args:
        rows: The rows of each.
        columns: Its columns.
        dtype: Its dtype.
    """

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (AHEAD, rows, columns), dtype
        self.free: list[Tensor] = []

    def take(self) -> Tensor:
        """Return one, with any numbers."""
        try:
            return self.free.pop()  # another thread may take the last one
        except IndexError:
            with torch.inference_mode(False), torch.device("cpu"):
                made = uncounted(torch.empty(self.shape, dtype=self.dtype)).unbind()
            self.free += made[1:]
            return made[0]
