"""How a tensor is divided: rebuilt states are compared sample by sample, in groups.

A small part of a state must not be judged by the size of a large one beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

GROUPS = 8  # most groups of channels
SAMPLES = 16  # most groups of samples


class Blocks(NamedTuple):
    """Blocks of samples and channels of a tensor of shape `(batch, channels, *space)`.

    The last block of an axis may be smaller than the others.

    Attributes:
        batch: The number of samples.
        channels: The number of channels.
        samples: Samples of a block.
        group: Channels of a block.
    """

    batch: int
    channels: int
    samples: int
    group: int

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return math.ceil(self.channels / self.group)

    @property
    def number(self) -> int:
        """The number of blocks."""
        return math.ceil(self.batch / self.samples) * self.groups

    def of(self, tensor: Tensor) -> Tensor:
        """Return the elements of each block, with zeros in place of what it lacks.

        Returns:
            Shape `(blocks of samples, samples, groups of channels, elements)`. It is a
            view if the tensor is contiguous and all blocks are of one size.
        """
        x = tensor.reshape(self.batch, self.channels, -1)
        lacking = -self.batch % self.samples, -self.channels % self.group
        if any(lacking):
            x = F.pad(x, (0, 0, 0, lacking[1], 0, lacking[0]))
        return x.reshape(-1, self.samples, self.groups, self.group * x.shape[2])

    def name(self, index: int) -> str:
        """Return which samples and channels are in a block."""
        sample, group = divmod(index, self.groups)
        named = (
            _range("sample", sample * self.samples, self.samples, self.batch),
            _range("channel", group * self.group, self.group, self.channels),
        )
        return ", ".join(filter(None, named))


def blocks_of(tensor: Tensor) -> Blocks:
    """Return how a tensor is divided, which depends on its shape only."""
    return blocks_of_shape(tensor.shape)


def blocks_of_shape(shape: Sequence[int]) -> Blocks:
    """Return how a tensor of this shape is divided."""
    if not all(shape):
        return Blocks(1, 1, 1, 1)
    batch, channels = map(int, (*shape[:2], 1, 1)[:2])
    return Blocks(batch, channels, _part(batch, SAMPLES), _part(channels, GROUPS))


def _part(length: int, most: int) -> int:
    """Return the size of a block: a divisor, if one gives at least `most / 2` blocks.

    Otherwise the last block is smaller, and must be padded.
    """
    for count in range(min(most, length), most // 2 - 1, -1):
        if length % count == 0:
            return length // count
    return math.ceil(length / most)


def _range(what: str, first: int, size: int, length: int) -> str:
    last = min(first + size, length) - 1
    if last - first + 1 == length:
        return ""
    return f"{what} {first}" if first == last else f"{what}s {first} to {last}"


def names_of(parts: Sequence[Blocks], index: int) -> str:
    """Return the name of one of the blocks of all tensors of a state, or nothing."""
    for i, blocks in enumerate(parts):
        if index < blocks.number:
            which = f"tensor {i}" if len(parts) > 1 else ""
            return ", ".join(filter(None, (which, blocks.name(index))))
        index -= blocks.number
    return ""
