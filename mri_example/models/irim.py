"""The i-RIM as a reconstruction method for complex images."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.nets import IRIM
from mri_example.errors import require
from mri_example.models.base import Reconstructor, check_counts
from mri_example.models.sensitivity import Maps, check_maps, estimated_maps
from mri_example.physics import LikelihoodGradient
from mri_example.transforms import channels_to_complex, complex_to_channels

Memory: TypeAlias = Literal["invert", "checkpoint", "store"]
Guard: TypeAlias = Literal["raise", "warn", "adapt"] | None
ReadOuts: TypeAlias = Literal["estimate", "parametric"]
HIDDEN = (64, 64, 128, 128, 256, 256, 128, 128, 64, 64)
STRIDES = (1, 1, 2, 2, 4, 4, 2, 2, 1, 1)
CHALLENGE_HIDDEN = (64, 64, 128, 128, 256, 1024, 1024, 256, 128, 128, 64, 64)
CHALLENGE_STRIDES = (1, 1, 2, 2, 4, 8, 8, 4, 2, 2, 1, 1)
KNEE_SCANS = tuple(  # in the order of the authors' channels
    f"{acquisition}/{scanner}"
    for scanner in ("Aera", "Biograph_mMR", "Prisma_fit", "Skyra")
    for acquisition in ("CORPDFS_FBK", "CORPD_FBK")
)


class IRIM2D(Reconstructor):
    r"""The i-RIM of the paper, slice by slice.

    The zero-filled images, divided by their standard deviation, are the first estimate:
    one complex image for each coil, each with the gradient of its own likelihood. The
    memory starts from zero. The coils share one state, so that they learn of each
    other, or (`coils=None`) each has its own, whatever their number, and the weights
    are those of a single coil. Each step is a fan of `OrthogonalCoupling`s that look at
    the images on grids of different coarseness; strides and widths are not in the
    paper, these are ours. What is read from the final state is multiplied by the scale
    again.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps $T$, each with weights of its own.
        hidden: Hidden channels of the couplings of a step, one entry per coupling.
        strides: Coarseness of the couplings of a step in rows and columns, as many
            entries as `hidden`.
        coils: Number of coils of the data, or null for any number, each by itself.
        sensitivity: Estimate one image of all coils, whatever their number, through
            sensitivity maps: "calibration" computes them from the fully sampled center
            of k-space, "espirit" with sigpy; null estimates an image of each coil.
        multiplicity: Copies of the estimate in the state.
        read_out: "estimate" returns the (first) estimate of each coil, "parametric"
            one image that a small network reads from the whole state, or from the
            state of each coil.
        final_update: Write the gradient into the memory once more after the last step.
        metadata: Kinds of scans that the model knows, as acquisition/scanner; each has
            one of the last channels of the first state, which is 1 for a scan of that
            kind, and 0 for others.
        all_steps: Average the training loss over the estimates after all steps, as that
            of an RIM, instead of the last alone; the states between the steps are kept.
        scale_crop: Central rows and columns, at most, whose standard deviation images
            are divided by; null for all of them.
        memory: "invert" trains in the memory of one layer, "checkpoint" keeps the state
            between layers, "store" keeps everything.
        anchors: Number of states that are kept exactly while inverting, or "auto".
        guard: What is done if rebuilt states drift: "raise", "warn", "adapt" (keep
            more of them) or null.

    Shape:
        See `Reconstructor`; the reconstruction is `(batch, coils, *space)`, or
        `(batch, 1, *space)` with sensitivity maps or the parametric read-out of coils
        that share a state.

    Examples:
        >>> model = IRIM2D(8, steps=2, hidden=(8, 8), strides=(1, 2))
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
        hidden: Sequence[int] = HIDDEN,
        strides: Sequence[int] = STRIDES,
        coils: int | None = 1,
        sensitivity: Maps | None = None,
        multiplicity: int = 1,
        read_out: ReadOuts = "estimate",
        final_update: bool = False,
        metadata: Sequence[str] = (),
        all_steps: bool = False,
        scale_crop: int | None = None,
        memory: Memory = "invert",
        anchors: int | Literal["auto"] = 8,
        guard: Guard = "raise",
    ) -> None:
        super().__init__()
        check_counts(channels=channels, steps=steps, hidden=hidden, strides=strides)
        check_counts(coils=coils, multiplicity=multiplicity, scale_crop=scale_crop)
        if sensitivity is not None:
            check_maps(sensitivity)
            coils = None
        self.together = 1 if coils is None else coils
        copies = self.together * multiplicity
        _check(hidden, strides, read_out, channels, 4 * copies + len(metadata))
        self.channels, self.coils, self.multiplicity = channels, coils, multiplicity
        self.metadata, self.scale_crop = tuple(metadata), scale_crop
        self.all_steps = all_steps
        self.sensitivity: Maps | None = sensitivity
        self.each_coil = coils is None and sensitivity is None
        self.irim = IRIM(
            [_fan(channels, hidden, strides, self.dims) for _ in range(steps)],
            LikelihoodGradient(),
            estimate_channels=2 * copies,
            final_update=final_update,
            memory=memory,
            anchors=anchors,
            guard=guard,
        )
        parametric = read_out == "parametric"
        self.read_out = _read_out(channels, self.dims) if parametric else None

    def forward(
        self,
        zero_filled: Tensor,
        mask: Tensor,
        metadata: Tensor | None = None,
        *,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Return the reconstruction."""
        scale, *chain = self._inputs(zero_filled, mask, metadata, scale=scale)
        return scale * self._images(self.irim(*chain), len(zero_filled))

    def trajectory(self, *inputs: Tensor, scale: Tensor | None = None) -> list[Tensor]:
        """Return the reconstruction, with `all_steps` after those of earlier steps."""
        if not self.all_steps:
            return super().trajectory(*inputs, scale=scale)
        scale, state, *data = self._inputs(*inputs, scale=scale)
        estimates = []
        for step in self._single_steps():
            state = step(state, *data)
            estimates.append(scale * self._images(state, len(inputs[0])))
        return estimates

    def _single_steps(self) -> list[InvertibleSequential]:
        """Return each step as a container, with its share of the states kept exactly.

        The last one makes the final update too.
        """
        members = self.irim.steps
        starts = range(0, 2 * (len(members) // 2), 2)
        ends = (*starts[1:], len(members))
        anchors: Any = members.anchors
        share = anchors // len(starts) if isinstance(anchors, int) else anchors
        options: dict[str, Any] = {"memory": members.memory, "guard": members.guard}
        return [
            InvertibleSequential(*members[start:end], anchors=share, **options)
            for start, end in zip(starts, ends, strict=True)
        ]

    def _inputs(
        self,
        zero_filled: Tensor,
        mask: Tensor,
        metadata: Tensor | None = None,
        *,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the scale, the first state, and the data that all steps are given."""
        self._check(zero_filled)
        maps: tuple[Tensor, ...] = ()
        if self.sensitivity is not None:
            maps = (estimated_maps(zero_filled, mask, self.sensitivity),)
            zero_filled = (maps[0].conj() * zero_filled).sum(dim=1, keepdim=True)
        scale = self.scale_of(zero_filled) if scale is None else scale
        batch, coils, *space = zero_filled.shape
        calls = coils // self.together  # of the same weights, for each image
        copies = (1, self.multiplicity, *(1,) * self.dims)
        measured = (zero_filled / scale).reshape(-1, self.together, *space)
        measured = measured.repeat(copies)
        mask = mask.expand(batch, *mask.shape[1:]).repeat_interleave(calls, dim=0)
        told = self._told(batch, metadata).repeat_interleave(calls, dim=0)
        return scale, self._start(measured, told), measured, mask, *maps

    def _check(self, zero_filled: Tensor) -> None:
        shape = tuple(zero_filled.shape)
        fits = len(shape) == self.dims + 2 and self.coils in (None, shape[1])
        coils = "any" if self.coils is None else self.coils
        text = f"the zero-filled images have shape {shape}, but this model takes "
        text += f"(batch, {coils} coils, {self.dims} spatial axes): build it with other"
        require(fits, f"{text} coils or dims")

    def _told(self, batch: int, metadata: Tensor | None) -> Tensor:
        """Return what the model is told of the scans: nothing, if nothing is known."""
        wanted = (batch, len(self.metadata))
        told = torch.zeros(wanted) if metadata is None else metadata
        text = f"metadata has shape {tuple(told.shape)}, but must be {wanted}: one "
        text += "entry for each kind of scan the model knows"
        require(told.shape == wanted, text)
        return told

    def _start(self, measured: Tensor, told: Tensor) -> Tensor:
        estimate = complex_to_channels(measured)
        _, used, *space = estimate.shape
        kinds = told.to(estimate).view(*told.shape, *(1,) * self.dims)
        everywhere = kinds.expand(-1, -1, *space)
        missing = self.channels - used - told.shape[1]
        memory = estimate.new_zeros(len(estimate), missing, *space)
        return torch.cat([estimate, memory, everywhere], dim=1)

    def _images(self, state: Tensor, batch: int) -> Tensor:
        """Return the images that a state holds, before they are scaled."""
        return self._image(state).reshape(batch, -1, *state.shape[2:])

    def _image(self, state: Tensor) -> Tensor:
        if self.read_out is not None:
            return channels_to_complex(self.read_out(state))
        estimates = 2 * self.together * self.multiplicity
        return channels_to_complex(state[:, :estimates])[:, : self.together]


class IRIM3D(IRIM2D):
    """The i-RIM of the paper on slabs of slices, which are not made coarser.

    Args:
        slab: Slices of a slab.
    """

    dims = 3

    def __init__(
        self,
        channels: int = 64,
        steps: int = 8,
        hidden: Sequence[int] = HIDDEN,
        strides: Sequence[int] = STRIDES,
        *,
        slab: int = 32,
        **options: Any,
    ) -> None:
        check_counts(slab=slab)
        super().__init__(channels, steps, hidden, strides, **options)
        self.slab = slab


class ChallengeIRIM(IRIM2D):
    """The i-RIM of the fastMRI challenge, single coil; see `IRIM2D`.

    12 couplings a step, four copies of the estimate, the kind of the scan in the last
    eight channels of the first state, and an image read from the whole state:
    275,206,144 parameters and 41,408 in the read-out. For several coils the authors
    took 96 channels and one copy of the estimate of each coil.

    References:
        Putzky et al., *i-RIM applied to the fastMRI challenge*, 2019. arXiv:1910.08952
    """

    def __init__(
        self,
        channels: int = 64,
        steps: int = 8,
        hidden: Sequence[int] = CHALLENGE_HIDDEN,
        strides: Sequence[int] = CHALLENGE_STRIDES,
        *,
        multiplicity: int = 4,
        read_out: ReadOuts = "parametric",
        final_update: bool = True,
        metadata: Sequence[str] = KNEE_SCANS,
        scale_crop: int | None = 320,
        **options: Any,
    ) -> None:
        super().__init__(
            channels,
            steps,
            hidden,
            strides,
            multiplicity=multiplicity,
            read_out=read_out,
            final_update=final_update,
            metadata=metadata,
            scale_crop=scale_crop,
            **options,
        )


def _read_out(channels: int, dims: int) -> nn.Sequential:
    """Return the residual block of the i-RIM without its gate, to one complex image."""
    conv, transposed = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    layers = {
        "gather": weight_norm(conv(channels, channels, 1)),
        "relu_1": nn.ReLU(),
        "look": weight_norm(conv(channels, channels, 3, padding=1)),
        "relu_2": nn.ReLU(),
        "spread": weight_norm(transposed(channels, 2, 1, bias=False)),
    }
    return nn.Sequential(OrderedDict(layers))


def _check(
    hidden: Sequence[int], strides: Sequence[int], read_out: str, room: int, needed: int
) -> None:
    text = f"hidden has {len(hidden)} entries and strides {len(strides)}: each "
    require(len(hidden) == len(strides), f"{text}coupling of a step needs one of both")
    text = f"read_out is {read_out!r}, but can only be 'estimate' or 'parametric'"
    require(read_out in get_args(ReadOuts), text)
    text = f"channels is {room}, but the complex estimates of all coils, their "
    text += f"gradients and the kinds of scans (metadata) need at least {needed}"
    require(room >= needed, text)


def _fan(
    channels: int, hidden: Sequence[int], strides: Sequence[int], dims: int
) -> InvertibleSequential:
    sizes = channels // 2, channels - channels // 2
    couplings = []
    for k, s in zip(hidden, strides, strict=True):
        stride = (s, s) if dims == 2 else (1, s, s)
        block = GatedResidualBlock(*sizes, hidden=k, stride=stride, dims=dims)
        couplings.append(OrthogonalCoupling(block, channels=channels))
    return InvertibleSequential(*couplings)
