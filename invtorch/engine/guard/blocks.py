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
PIECES = 4  # most groups along each of the two last axes of a tensor with three


class Blocks(NamedTuple):
    """Blocks of samples and channels of a tensor of shape `(batch, channels, *space)`.

    With three axes either of the last two may be that of the channels, as in `(batch,
    length, features)`, so that both are divided. The last block of an axis may be
    smaller than the others.

    Attributes:
        batch: The number of samples.
        channels: The number of channels.
        samples: Samples of a block.
        group: Channels of a block.
        length: Entries along the last axis; 1 if it is not divided.
        piece: Entries of a block along the last axis.
    """

    batch: int
    channels: int
    samples: int
    group: int
    length: int = 1
    piece: int = 1

    @property
    def pieces(self) -> int:
        """The number of blocks along the last axis."""
        return math.ceil(self.length / self.piece)

    @property
    def groups(self) -> int:
        """The number of blocks of a sample."""
        return math.ceil(self.channels / self.group) * self.pieces

    @property
    def number(self) -> int:
        """The number of blocks."""
        return math.ceil(self.batch / self.samples) * self.groups

    def of(self, tensor: Tensor) -> Tensor:
        """Return the elements of each block, with zeros in place of what it lacks.

        Returns:
            Shape `(blocks of samples, samples, blocks of a sample, elements)`. It is a
            view if the tensor is contiguous, and all blocks are of one size and take
            all of the last axis.
        """
        x = tensor.reshape(self.batch, self.channels, self.length, -1)
        axes = (self.length, self.piece), (self.channels, self.group)
        lacking = [-n % block for n, block in (*axes, (self.batch, self.samples))]
        if any(lacking):
            x = F.pad(x, [0, 0, *(n for some in lacking for n in (0, some))])
        if self.pieces > 1:
            x = x.unflatten(2, (self.pieces, -1)).unflatten(1, (-1, self.group))
            x = x.transpose(2, 3)
        return x.reshape(len(x) // self.samples, self.samples, self.groups, -1)

    def name(self, index: int) -> str:
        """Return which samples, channels and entries are in a block."""
        sample, group = divmod(index, self.groups)
        channel, piece = divmod(group, self.pieces)
        entries = _range("entry", piece * self.piece, self.piece, self.length)
        named = (
            _range("sample", sample * self.samples, self.samples, self.batch),
            _range("channel", channel * self.group, self.group, self.channels),
            entries and f"{entries} of the last axis",
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
    samples = _part(batch, SAMPLES)
    if len(shape) != 3 or channels == 1 or shape[2] == 1:
        return Blocks(batch, channels, samples, _part(channels, GROUPS))
    length = int(shape[2])
    group, piece = _part(channels, PIECES), _part(length, PIECES)
    return Blocks(batch, channels, samples, group, length, piece)


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
    several = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{what} {first}" if first == last else f"{several} {first} to {last}"


def names_of(parts: Sequence[Blocks], index: int) -> str:
    """Return the name of one of the blocks of all tensors of a state, or nothing."""
    for i, blocks in enumerate(parts):
        if index < blocks.number:
            which = f"tensor {i}" if len(parts) > 1 else ""
            return ", ".join(filter(None, (which, blocks.name(index))))
        index -= blocks.number
    return ""
