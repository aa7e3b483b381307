"""The marks of the states of a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Marks:
    """Projections of states, in the order in which they are taken.

    Those on the CPU are copied into memory of NumPy, which memory measurements do not
    count. Those on a device stay there until they are read, so that nothing waits.
    """

    def __init__(self) -> None:
        self.taken: list[Any] = []  # arrays from the CPU, tensors from a device

    def append(self, projections: Tensor) -> None:
        """Add those of one state, shape `(blocks, PROBES)`."""
        on_cpu = projections.device.type == "cpu"
        self.taken.append(projections.numpy().copy() if on_cpu else projections)

    def read(self) -> list[Tensor]:
        """Return all of them on the CPU."""
        if isinstance(self.taken[0], np.ndarray):
            return [*map(torch.from_numpy, self.taken)]
        table = torch.cat(self.taken).cpu()
        return list(table.split([len(mark) for mark in self.taken]))


def uncounted(numbers: Tensor) -> Tensor:
    """Return a copy in memory of NumPy, which is not memory of a pass."""
    return torch.from_numpy(numbers.numpy().copy())
