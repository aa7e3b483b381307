"""A state that is kept, and the proof that nobody wrote into it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from invtorch.engine.environment import version
from invtorch.engine.frame import Tensors


class Snapshot(NamedTuple):
    """A state as it was when the pass went by, and how often it had been changed."""

    tensors: Tensors
    versions: tuple[int, ...]

    @classmethod
    def of(cls, state: Tensors) -> Snapshot:
        """Take a snapshot that shares memory with `state` but not its graph."""
        return cls(tuple(t.detach() for t in state), tuple(map(version, state)))

    def unchanged(self) -> bool:
        """Tell whether nothing was written into these tensors since."""
        return self.versions == tuple(map(version, self.tensors))

    def is_of(self, state: Tensors) -> bool:
        """Tell whether `state` is this very memory, unchanged."""
        return self.unchanged() and [*map(_place, self.tensors)] == [
            *map(_place, state)
        ]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
