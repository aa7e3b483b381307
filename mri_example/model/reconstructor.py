"""The i-RIM as a reconstruction method for complex images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.nets import IRIM
from mri_example.model.base import Reconstructor
from mri_example.model.read_out import ReadOut
from mri_example.physics import LikelihoodGradient
from mri_example.transforms import channels_to_complex, complex_to_channels

READ_OUTS = ("estimate", "parametric")


class IRIMReconstructor(Reconstructor):
    r"""Reconstruct slices or slabs from the undersampled k-space of each coil.

    The zero-filled images, divided by their standard deviation, are the first estimate:
    one complex image for each coil, each with the gradient of its own likelihood. The
    memory starts from zero. The coils share one state, so that they learn of each
    other, or (`coils=None`) each has its own, whatever their number, and the weights
    are those of a single coil. Each step is a fan of `OrthogonalCoupling`s that look at
    the images on grids of different coarseness. What is read from the final state is
    multiplied by the scale again. Whoever hands in a part of an image hands in the
    scale of the whole.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps $T$, each with weights of its own.
        hidden: Hidden channels of the couplings of a step, one entry per coupling.
        strides: Coarseness of the couplings of a step, as many entries as `hidden`. In
            three dimensions slices are not made coarser.
        coils: Number of coils of the data, or `None` for any number, each by itself.
        multiplicity: Copies of the estimate in the state.
        dims: 2 for slices, 3 for slabs of slices.
        read_out: `"estimate"` returns the (first) estimate of each coil, `"parametric"`
            one image that a small network reads from the whole state, or from the
            state of each coil.
        final_update: Write the gradient into the memory once more after the last step.
        metadata: Kinds of scans that the model knows; each has one of the last channels
            of the first state, which is 1 for a scan of that kind, and 0 for others.
        scale_crop: Central rows and columns, at most, whose standard deviation images
            are divided by; `None` for all of them.
        memory: Memory strategy; see `invtorch.InvertibleSequential`.
        anchors: States kept exactly; see `invtorch.InvertibleSequential`.
        guard: What is done if rebuilt states drift; see the same.

    Shape:
        Zero-filled images, complex `(batch, coils, *space)`, a mask
        `(batch, 1, *ones, cols)`, and metadata `(batch, kinds)`, which may be left out;
        the reconstruction is complex `(batch, coils, *space)`, or `(batch, 1, *space)`
        with the parametric read-out of coils that share a state.

    Raises:
        ValueError: If `hidden` and `strides` differ in length, the state is too small
            for the copies of the estimate, their gradients and the metadata,
            `read_out` is unknown, or data have another number of coils, axes or kinds.

    Examples:
        >>> model = IRIMReconstructor(8, steps=2, hidden=(8, 8), strides=(1, 2))
        >>> image = torch.randn(1, 1, 16, 16, dtype=torch.complex64)
        >>> model(image, torch.ones(1, 1, 1, 16)).shape
        torch.Size([1, 1, 16, 16])

    References:
        Putzky and Welling, *Invert to learn to invert*, 2019. arXiv:1911.10914
    """

    def __init__(
        self,
        channels: int = 64,
        steps: int = 8,
        hidden: Sequence[int] = (64, 64, 128, 128, 256, 256, 128, 128, 64, 64),
        strides: Sequence[int] = (1, 1, 2, 2, 4, 4, 2, 2, 1, 1),
        *,
        coils: int | None = 1,
        multiplicity: int = 1,
        dims: int = 2,
        read_out: str = "estimate",
        final_update: bool = False,
        metadata: Sequence[str] = (),
        scale_crop: int | None = None,
        memory: str = "invert",
        anchors: int | Sequence[int] | str = 8,
        guard: str | None = "raise",
    ) -> None:
        super().__init__()
        if len(hidden) != len(strides):
            raise ValueError(
                f"hidden has {len(hidden)} entries and strides {len(strides)}: each "
                f"coupling of a step needs one of both"
            )
        if read_out not in READ_OUTS:
            raise ValueError(
                f"read_out is {read_out!r}, but can only be 'estimate' or 'parametric'"
            )
        together = 1 if coils is None else coils
        copies = together * multiplicity
        needed = 4 * copies + len(metadata)
        if not 0 < needed <= channels:
            raise ValueError(
                f"channels is {channels}, but {multiplicity} complex estimate(s) of "
                f"{together} coil(s), their gradients and {len(metadata)} kinds of "
                f"scans (metadata) need at least {needed}"
            )
        self.channels, self.dims, self.metadata = channels, dims, tuple(metadata)
        self.coils, self.together, self.multiplicity = coils, together, multiplicity
        self.each_coil, self.scale_crop = coils is None, scale_crop
        self.irim = IRIM(
            [_fan(channels, hidden, strides, dims) for _ in range(steps)],
            LikelihoodGradient(),
            estimate_channels=2 * copies,
            final_update=final_update,
            memory=memory,
            anchors=anchors,
            guard=guard,
        )
        self.read_out = ReadOut(channels, dims) if read_out == "parametric" else None

    @property
    def memory(self) -> str:
        """The memory strategy of the network."""
        return self.irim.steps.memory or "invert"

    @memory.setter
    def memory(self, memory: str) -> None:
        self.irim.steps.memory = memory

    def forward(
        self,
        zero_filled: Tensor,
        mask: Tensor,
        metadata: Tensor | None = None,
        *,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Return the reconstruction."""
        self._check(zero_filled)
        scale = self.scale_of(zero_filled) if scale is None else scale
        batch, coils, *space = zero_filled.shape
        calls = coils // self.together  # of the same weights, for each image
        copies = (1, self.multiplicity, *(1,) * self.dims)
        measured = (zero_filled / scale).reshape(-1, self.together, *space)
        measured = measured.repeat(copies)
        mask = mask.expand(batch, *mask.shape[1:]).repeat_interleave(calls, dim=0)
        told = self._told(batch, metadata).repeat_interleave(calls, dim=0)
        state = self.irim(self._start(measured, told), measured, mask)
        return scale * self._image(state).reshape(batch, -1, *space)

    def _check(self, zero_filled: Tensor) -> None:
        shape = tuple(zero_filled.shape)
        if len(shape) != self.dims + 2 or self.coils not in (None, shape[1]):
            coils = "any" if self.coils is None else self.coils
            raise ValueError(
                f"the zero-filled images have shape {shape}, but this model takes "
                f"(batch, {coils} coils, {self.dims} spatial axes): build it with "
                f"other coils or dims"
            )

    def _told(self, batch: int, metadata: Tensor | None) -> Tensor:
        """Return what the model is told of the scans: nothing, if nothing is known."""
        wanted = (batch, len(self.metadata))
        if metadata is None:
            return torch.zeros(wanted)
        if metadata.shape != wanted:
            raise ValueError(
                f"metadata has shape {tuple(metadata.shape)}, but must be {wanted}: "
                f"one entry for each kind of scan the model knows"
            )
        return metadata

    def _start(self, measured: Tensor, told: Tensor) -> Tensor:
        estimate = complex_to_channels(measured)
        _, used, *space = estimate.shape
        kinds = told.to(estimate).view(*told.shape, *(1,) * self.dims)
        everywhere = kinds.expand(-1, -1, *space)
        missing = self.channels - used - told.shape[1]
        memory = estimate.new_zeros(len(estimate), missing, *space)
        return torch.cat([estimate, memory, everywhere], dim=1)

    def _image(self, state: Tensor) -> Tensor:
        if self.read_out is not None:
            return channels_to_complex(self.read_out(state))
        estimates = 2 * self.together * self.multiplicity
        return channels_to_complex(state[:, :estimates])[:, : self.together]


def _fan(
    channels: int, hidden: Sequence[int], strides: Sequence[int], dims: int
) -> InvertibleSequential:
    half = channels // 2
    return InvertibleSequential(
        *[
            OrthogonalCoupling(
                GatedResidualBlock(
                    half,
                    channels - half,
                    hidden=k,
                    stride=(s, s) if dims == 2 else (1, s, s),
                    dims=dims,
                ),
                channels=channels,
            )
            for k, s in zip(hidden, strides, strict=True)
        ]
    )
