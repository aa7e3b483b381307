"""The invertible U-Net."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from invtorch import (
    Composite,
    GatedResidualBlock,
    HaarDownsample,
    InvertibleModule,
    InvertibleSequential,
    OnPart,
    OrthogonalCoupling,
    OrthogonalDownsample,
    PixelUnshuffle,
    Step,
    WithoutContext,
)
from invtorch._checks import check_count, check_function
from invtorch.containers.sequential import MemoryArgument
from invtorch.engine import GuardPolicy
from invtorch.nets.set_aside import SetAside, on_first

RESAMPLING = ("orthogonal", "haar", "pixel_unshuffle")


class InvertibleUNet(Composite):
    r"""A U-Net that is invertible, and is trained in the memory of one layer.

    At each level the encoder applies invertible blocks, sets some of the channels aside
    and downsamples the others, $D$. The decoder upsamples, joins them with the channels
    that were set aside, and applies blocks again. So a level is

    $$ f_l = h_l \circ
       \begin{pmatrix} D_l'^{-1} \circ f_{l+1} \circ D_l & 0 \\ 0 & I \end{pmatrix}
       \circ g_l $$

    with blocks $g_l$ and $h_l$, and the matrix acts on the two groups of channels. The
    skip connections are the channels that were set aside. $D_l$ and $D_l'$ are
    orthogonal, so only the blocks change the volume. All of it is one chain for the
    container: memory depends neither on the number of blocks nor on that of levels.

    Sizes may be odd and need not be known before: what the stride does not divide is
    carried past the coarser levels, so the output has the shape of the input, and the
    inverse is exact.

    Args:
        channels: The number of channels at each level, from the finest to the coarsest.
            Blocks of `stride` positions become channels, so each number but the first
            is a multiple of the entries of a block. A number divided by these entries
            is how many channels of the level above are downsampled; the others skip.
        blocks: Blocks of the encoder at each level, and of the decoder as well: one
            number, or one for each level. The coarsest level has as many of both.
        block: A function that takes a number of channels, and returns an
            `InvertibleModule` that keeps the shape. By default it makes an
            `OrthogonalCoupling` with a `GatedResidualBlock`, which gets no context.
            Blocks of `block` get the context as the network gets it, at every level.
        hidden: Channels inside of the default blocks; by default those of the level.
        stride: The factor of downsampling: one number, or one for each axis.
        dims: The number of spatial axes, 1 to 3.
        resampling: `"orthogonal"`, which is learned and begins as the Haar transform
            (as pixel unshuffling if a stride is larger than 2); `"haar"`; or
            `"pixel_unshuffle"`.
        memory: Memory strategy of the container.
        anchors: States that the container keeps exactly.
        guard: What the container does if rebuilt states drift. All three are described
            in `invtorch.InvertibleSequential`.

    Shape:
        `(batch, channels[0], *space)`; the output has the same shape. Along each axis
        the coarsest level has at least one position.

    Raises:
        TypeError: If a number is not an integer, or a block not an `InvertibleModule`.
        ValueError: If the numbers do not fit each other, `resampling` is unknown, or a
            state does not fit.

    Examples:
        >>> from invtorch.nets import InvertibleUNet
        >>> net = InvertibleUNet([6, 8, 16], hidden=4)
        >>> x = torch.randn(1, 6, 15, 13)
        >>> y = net(x)
        >>> y.shape, torch.allclose(net.inverse(y), x, atol=1e-4)
        (torch.Size([1, 6, 15, 13]), True)

    References:
        Etmann et al., *iUNets: Fully invertible U-Nets with learnable up- and
        downsampling*, 2020. arXiv:2005.05220

        Ronneberger et al., *U-Net: Convolutional networks for biomedical image
        segmentation*, 2015. arXiv:1505.04597
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        blocks: int | Sequence[int] = 2,
        block: Callable[[int], InvertibleModule] | None = None,
        hidden: int | None = None,
        stride: int | Sequence[int] = 2,
        dims: int = 2,
        resampling: str = "orthogonal",
        memory: MemoryArgument = "invert",
        anchors: int | Sequence[int] | str = 8,
        guard: GuardPolicy | None = "raise",
    ) -> None:
        super().__init__()
        self.stride = _strides(stride, dims)
        self.channels = _levels(channels, math.prod(self.stride))
        self.blocks = _counts(blocks, len(self.channels))
        self.resampling = resampling
        if hidden is not None:
            check_count("hidden", hidden)
        if block is not None:
            check_function("block", block)

        def default(channels: int) -> InvertibleModule:
            return _gated_coupling(channels, hidden or channels, dims)

        members = self._level(0, block or default)
        self.layers = InvertibleSequential(
            *members, memory=memory, anchors=anchors, guard=guard
        )

    def chain(self) -> Sequence[Step]:
        """Run the encoder, then the decoder."""
        return [Step(self.layers)]

    def extra_repr(self) -> str:
        """Show the channels of each level, and where they go."""
        entries = math.prod(self.stride)
        lines = [f"stride={self.stride}, resampling={self.resampling!r}"]
        below = [c // entries for c in self.channels[1:]]
        for level, (c, n) in enumerate(zip(self.channels, self.blocks, strict=True)):
            text = f"level {level}: {c} channels, {n} + {n} blocks"
            if level < len(below):
                text += f", {below[level]} downsampled, {c - below[level]} skip"
            lines.append(text)
        return "\n".join(lines)

    def _level(
        self, level: int, block: Callable[[int], InvertibleModule]
    ) -> list[InvertibleModule]:
        """Return the layers of a level, and of all that are coarser."""
        c, count = self.channels[level], self.blocks[level]
        encoder, decoder = (
            on_first(level, *(block(c) for _ in range(count))) for _ in range(2)
        )
        if level == len(self.channels) - 1:
            return [*encoder, *decoder]
        inner = self.channels[level + 1] // math.prod(self.stride)
        aside = SetAside((inner, c - inner), self.stride)
        down, up = (self._resample(inner) for _ in range(2))
        return [
            *encoder,
            aside,
            OnPart(down, 0),
            *self._level(level + 1, block),
            OnPart(up.inv, 0),
            aside.inv,
            *decoder,
        ]

    def _resample(self, channels: int) -> InvertibleModule:
        if self.resampling == "haar":
            return HaarDownsample(self.stride)
        if self.resampling == "pixel_unshuffle":
            return PixelUnshuffle(self.stride)
        if self.resampling == "orthogonal":
            init = "haar" if max(self.stride) <= 2 else "pixel_shuffle"
            return OrthogonalDownsample(channels, self.stride, init=init)
        raise ValueError(
            f"resampling is {self.resampling!r}, but must be one of {RESAMPLING}"
        )


def _gated_coupling(channels: int, hidden: int, dims: int) -> InvertibleModule:
    half = channels // 2
    conditioner = GatedResidualBlock(half, channels - half, hidden=hidden, dims=dims)
    reflections = min(3, channels)
    return WithoutContext(
        OrthogonalCoupling(conditioner, channels=channels, reflections=reflections)
    )


def _strides(stride: int | Sequence[int], dims: int) -> tuple[int, ...]:
    check_count("dims", dims)
    if dims > 3:
        raise ValueError(f"dims is {dims}, but must be 1, 2 or 3")
    strides = tuple(stride) if isinstance(stride, Iterable) else (stride,) * dims
    for one in strides:
        check_count("stride", one)
    if len(strides) != dims:
        raise ValueError(f"stride is {stride}, but needs {dims} entries (dims)")
    return strides


def _levels(channels: Sequence[int], entries: int) -> tuple[int, ...]:
    """Check the number of channels of each level."""
    if not isinstance(channels, Iterable):
        raise TypeError(
            f"channels is {channels!r}, but must be a sequence with one number for "
            f"each level, such as [16, 32, 64]"
        )
    channels = tuple(channels)
    if not channels:
        raise ValueError("channels is empty, but needs one number for each level")
    for level, c in enumerate(channels):
        check_count(f"channels[{level}]", c, least=1 if level else 2)
    for level, (above, c) in enumerate(itertools.pairwise(channels), start=1):
        if c % entries or c // entries >= above:
            raise ValueError(
                f"channels[{level}] is {c}, but must be a multiple of {entries}, "
                f"the entries of a block, and at most {entries * (above - 1)}"
            )
    return channels


def _counts(blocks: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Check the number of blocks of each level."""
    counts = tuple(blocks) if isinstance(blocks, Iterable) else (blocks,) * levels
    for n in counts:
        check_count("blocks", n)
    if len(counts) != levels:
        raise ValueError(
            f"blocks is {blocks}, but needs {levels} entries, one for each level"
        )
    return counts
