"""A state that is kept, and the proof that nobody wrote into it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from invtorch.engine.replayed import Tensors
from invtorch.engine.tables import versions


class Snapshot(NamedTuple):
    """A state as it was when the pass went by, and how often it had been changed.

    Attributes:
        kept: The tensors, without their graph.
        versions: How often each had been changed in place.
        devices: Where the state belongs, if it is kept elsewhere.
    """

    kept: Tensors
    versions: list[int]
    devices: tuple[torch.device, ...] = ()

    @classmethod
    def of(cls, state: Tensors) -> Snapshot:
        """Take a snapshot that shares memory with `state` but not its graph."""
        return cls(tuple([t.detach() for t in state]), versions(state))

    def on_host(self) -> Snapshot:
        """Move to the memory of the host; what lives there already stays as it is."""
        kept = tuple(map(_on_host, self.kept))
        devices = tuple(t.device for t in self.kept)
        return Snapshot(kept, versions(kept), devices)

    @property
    def tensors(self) -> Tensors:
        """The state on its device."""
        if not self.devices:
            return self.kept
        pairs = zip(self.kept, self.devices, strict=True)
        return tuple(t.to(device, non_blocking=True) for t, device in pairs)

    def unchanged(self) -> bool:
        """Tell whether nothing was written into these tensors since."""
        return versions(self.kept) == self.versions

    def is_of(self, state: Tensors) -> bool:
        """Tell whether `state` is this very memory, unchanged."""
        return self.unchanged() and [*map(_place, self.kept)] == [*map(_place, state)]


def _on_host(tensor: Tensor) -> Tensor:
    """Queue a copy to pinned memory, on the stream of the computation."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return pinned.copy_(tensor, non_blocking=tensor.is_cuda)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    seen = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), *seen
