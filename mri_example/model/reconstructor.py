"""The i-RIM as a reconstruction method for complex images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from mri_example.model.irim import IRIM
from mri_example.model.read_out import ReadOut
from mri_example.physics import LikelihoodGradient
from mri_example.signal import channels_to_complex, complex_to_channels


class IRIMReconstructor(nn.Module):
    r"""Reconstruct slices from undersampled single-coil k-space.

    The zero-filled image, divided by its standard deviation, is the first estimate; the
    memory starts from zero. Each step is a fan of `OrthogonalCoupling`s that look at
    the image on grids of different coarseness. The image is read from the final state
    and multiplied by the scale again.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps $T$, each with weights of its own.
        hidden: Hidden channels of the couplings of a step, one entry per coupling.
        strides: Coarseness of the couplings of a step, as many entries as `hidden`.
        multiplicity: Copies of the complex estimate in the state.
        read_out: `"estimate"` returns the (first) estimate, `"parametric"` adds a
            correction that a small network reads from the whole state.
        memory: Memory strategy; see `invtorch.InvertibleSequential`.
        anchors: States kept exactly; see `invtorch.InvertibleSequential`.
        guard: What is done if rebuilt states drift; see the same.

    Shape:
        A zero-filled image, complex `(batch, H, W)`, and a mask `(batch, 1, W)`; the
        reconstruction is complex `(batch, H, W)`.

    Raises:
        ValueError: If `hidden` and `strides` differ in length, the state is too small
            for the copies of the estimate and their gradients, or `read_out` is
            unknown.

    Examples:
        >>> model = IRIMReconstructor(8, steps=2, hidden=(8, 8), strides=(1, 2))
        >>> image = torch.randn(1, 16, 16, dtype=torch.complex64)
        >>> model(image, torch.ones(1, 1, 16)).shape
        torch.Size([1, 16, 16])

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
        multiplicity: int = 1,
        read_out: str = "estimate",
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
        if channels < 4 * multiplicity:
            raise ValueError(
                f"channels is {channels}, but {multiplicity} complex estimate(s) and "
                f"their gradients need at least {4 * multiplicity}"
            )
        if read_out not in ("estimate", "parametric"):
            raise ValueError(
                f"read_out is {read_out!r}, but can only be 'estimate' or 'parametric'"
            )
        self.channels, self.multiplicity = channels, multiplicity
        self.irim = IRIM(
            [_fan(channels, hidden, strides) for _ in range(steps)],
            LikelihoodGradient(),
            estimate_channels=2 * multiplicity,
            memory=memory,
            anchors=anchors,
            guard=guard,
        )
        self.read_out = ReadOut(channels) if read_out == "parametric" else None

    @property
    def memory(self) -> str:
        """The memory strategy of the network."""
        return self.irim.steps.memory or "invert"

    @memory.setter
    def memory(self, memory: str) -> None:
        self.irim.steps.memory = memory

    def forward(self, zero_filled: Tensor, mask: Tensor) -> Tensor:
        """Return the reconstruction."""
        scale = _standard_deviation(zero_filled)
        measured = (zero_filled / scale).unsqueeze(1)
        state = self.irim(self._start(measured), measured, mask.unsqueeze(1))
        return scale * self._image(state)

    def _start(self, measured: Tensor) -> Tensor:
        estimate = complex_to_channels(measured.repeat(1, self.multiplicity, 1, 1))
        batch, used, *space = estimate.shape
        memory = estimate.new_zeros(batch, self.channels - used, *space)
        return torch.cat([estimate, memory], dim=1)

    def _image(self, state: Tensor) -> Tensor:
        copies = channels_to_complex(state[:, : 2 * self.multiplicity])
        if self.read_out is None:
            return copies[:, 0]
        correction = channels_to_complex(self.read_out(state))
        return copies[:, 0] + correction[:, 0]


def _fan(
    channels: int, hidden: Sequence[int], strides: Sequence[int]
) -> InvertibleSequential:
    half = channels // 2
    return InvertibleSequential(
        *[
            OrthogonalCoupling(
                GatedResidualBlock(half, channels - half, hidden=k, stride=s),
                channels=channels,
            )
            for k, s in zip(hidden, strides, strict=True)
        ]
    )


def _standard_deviation(images: Tensor) -> Tensor:
    """Return that of every complex image, or 1 where an image is constant."""
    deviation = torch.view_as_real(images).flatten(1).std(dim=1)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return deviation.view(-1, *(1,) * (images.ndim - 1))
