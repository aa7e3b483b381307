"""A data set of slices or slabs: the inputs of a model and its targets."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mri_example.data.checks import checked
from mri_example.data.files import KSpaceFile, volume_paths
from mri_example.errors import InputError, require, reworded
from mri_example.masks import Masks, encoded_axes, undersample, volume_seed
from mri_example.transforms import center_crop, fftc, fitted, ifftc, root_sum_of_squares

LOG = logging.getLogger(__name__)
Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
Magnitudes: TypeAlias = NDArray[np.float32]


class Sample(NamedTuple):
    """One slice, or a slab of them.

    Attributes:
        zero_filled: Images of the measured k-space, complex `(coils, rows, cols)`, of a
            slab `(coils, slices, rows, cols)`; single-coil data have one coil.
        mask: 1 where columns were measured, `(1, ..., 1, cols)`.
        image: Images of the full k-space, alike; equal to `zero_filled` where the file
            itself is undersampled.
        maximum: Largest magnitude of the target volume; if there is none, of `image`,
            all coils combined.
        name: Name of the file.
        slice_index: The (first) slice in the volume.
        metadata: 1 for the kind of the scan among those that the model knows, else 0.
    """

    zero_filled: Tensor
    mask: Tensor
    image: Tensor
    maximum: float
    name: str
    slice_index: int
    metadata: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a method is given: images, mask, and metadata if it knows any scans."""
        told = (self.metadata,) if self.metadata.shape[-1] else ()
        return self.zero_filled, self.mask, *told


class SliceDataset(Dataset[Sample]):
    """All slices of the files of a folder, or slabs of slices.

    The readout oversampling is removed first: rows are cropped to those of the target,
    which is exact because the mask runs along the columns only.

    A file that brings its own mask keeps it. Otherwise masks are seeded by the name of
    the file, the same for all slices of a volume; or, with an `epoch`, drawn afresh for
    every sample. All randomness of a sample is a function of seed, epoch and index
    alone, so it does not depend on workers, ranks or interruptions.

    Args:
        folder: A folder such as `singlecoil_train` or `multicoil_train`.
        masks: How files without a mask are undersampled.
        slab: Number of slices in a slab; `None` for slices without such an axis. In
            training a slab starts at every slice, otherwise slabs overlap by half, and
            a volume with fewer slices is one slab. So is the volume of a 3-D
            acquisition, whose masks tell slices apart: they are measured together.
        coils: Number of coils that every file must have; `None` for any.
        epoch: Number of the training epoch; `None` outside of training.
        seed: Seed of the training randomness.
        skip_thin: Leave out what is for training and has fewer slices than a slab, and
            log the names.
        crop: Rows and columns of what a model is trained on; larger images are cropped,
            smaller ones padded with zeros.
        augment: Changes the fully sampled image in training.
        metadata: The kinds of scans that the model knows, as `KSpaceFile.scan` names
            them. Files of others are logged.
        failures: Takes up the files that cannot be used, and why; they are left out.
            Without it the first one ends everything.

    Raises:
        InputError: If there are no usable files, one has other coils or contradicts
            itself, or one for training is undersampled or thinner than a slab.
    """

    def __init__(
        self,
        folder: Path,
        masks: Masks,
        *,
        slab: int | None = None,
        coils: int | None = None,
        epoch: int | None = None,
        seed: int = 0,
        skip_thin: bool = False,
        crop: tuple[int, int] | None = None,
        augment: Augmentation | None = None,
        metadata: Sequence[str] = (),
        failures: dict[Path, str] | None = None,
    ) -> None:
        training = epoch is not None
        self.files = checked(
            volume_paths(folder), failures, lambda f: _check(f, coils, training)
        )
        if training and slab is not None:
            self.files = _thick(self.files, slab, skip_thin)
        unknown = sorted({file.scan for file in self.files} - set(metadata))
        if unknown and metadata:
            text = "the model knows no scans of the kind %s (acquisition/scanner)"
            LOG.warning(text, ", ".join(unknown))
        self.masks, self.slab = masks, slab
        self.epoch, self.seed = epoch, seed
        self.crop, self.augment, self.metadata = crop, augment, metadata
        self.items = [(f, i) for f in self.files for i in self._starts(f)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Sample:
        file, index = self.items[item]
        image = self._image(file, index)
        if self.epoch is not None:
            image = self._prepared(image, item)
        mask = self._mask(file, image.shape, item)
        axes = encoded_axes(mask)
        zero_filled = ifftc(undersample(fftc(image, axes), mask), axes)
        maximum = file.maximum
        if maximum is None:
            maximum = float(root_sum_of_squares(image, dim=0).max())
        told = torch.tensor([float(file.scan == name) for name in self.metadata])
        return Sample(zero_filled, mask, image, maximum, file.path.name, index, told)

    def _starts(self, file: KSpaceFile) -> list[int]:
        """Return the first slices of the samples of a file."""
        if self.slab is None:
            return list(range(file.slices))
        slab = self._depth(file, self.slab)
        step = 1 if self.epoch is not None else max(1, slab // 2)
        return slab_starts(file.slices, slab, step)

    def _depth(self, file: KSpaceFile, slab: int) -> int:
        whole = self.masks.encodes_slices and file.mask is None and self.epoch is None
        return file.slices if whole else min(slab, file.slices)

    def _image(self, file: KSpaceFile, index: int) -> Tensor:
        if self.slab is None:
            return coil_images(file, index)
        slab = range(index, index + self._depth(file, self.slab))
        return torch.stack([coil_images(file, i) for i in slab], dim=1)

    def _prepared(self, image: Tensor, item: int) -> Tensor:
        if self.augment is not None:
            seeds = np.random.SeedSequence(self._seed(item))
            (seed,) = seeds.generate_state(1, np.uint64)
            image = self.augment(image, torch.Generator().manual_seed(int(seed)))
        return image if self.crop is None else fitted(image, self.crop)

    def _seed(self, item: int) -> tuple[int, int, int]:
        return self.seed, self.epoch or 0, item

    def _mask(self, file: KSpaceFile, shape: Sequence[int], item: int) -> Tensor:
        if file.mask is not None:
            return torch.from_numpy(file.mask).view(*(1,) * (len(shape) - 1), -1)
        training = self.epoch is not None
        seed = self._seed(item) if training else volume_seed(file.path.name)
        with reworded(f"{file.path} cannot be undersampled: {{}}", InputError):
            mask, _ = self.masks(shape, seed=seed)
            if shape[-1] == file.shape[-1]:
                columns, (left, right) = torch.arange(shape[-1]), file.padding
                mask = mask * ((columns >= left) & (columns < right))
            text = f"the mask leaves no column of the {file.padding} that are encoded"
            require(mask.any(), f"{text}: choose another")
        return mask


def coil_images(file: KSpaceFile, index: int) -> Tensor:
    """Return the complex images `(coils, H, cols)` of a slice, rows cropped."""
    kspace = torch.from_numpy(file.kspace(index))
    images = ifftc(kspace.view(-1, *kspace.shape[-2:]))
    return center_crop(images, (file.crop[0], images.shape[-1]))


def _check(file: KSpaceFile, coils: int | None, training: bool) -> None:
    text = f"{file.path} has {file.coils} coils, but the model takes {coils}: build it "
    text += "with other coils, or separate the files"
    require(coils in (None, file.coils), text)
    text = f"{file.path} brings a mask, so its k-space counts as undersampled and no "
    text += "model can learn from it: train on fully sampled files, or remove a mask "
    require(not training or file.mask is None, f"{text}of ones")


def _thick(files: list[KSpaceFile], slab: int, skip_thin: bool) -> list[KSpaceFile]:
    """Return the files that have a slab; others are refused, or left out and logged."""
    thin = [file for file in files if file.slices < slab]
    if not thin:
        return files
    most = max(thin, key=lambda file: file.slices)
    only = "no volume has more than" if skip_thin else f"{most.path} has only"
    text = f"slab is {slab}, but {only} {most.slices} slices: train on thinner slabs, "
    usable = skip_thin and len(thin) < len(files)
    require(usable, f"{text}or set `skip_thin` to leave out such volumes")
    names = ", ".join(file.path.name for file in thin)
    text = "%d volumes have fewer slices than a slab of %d and are left out: %s"
    LOG.warning(text, len(thin), slab, names)
    return [file for file in files if file not in thin]


def slab_starts(slices: int, slab: int, step: int) -> list[int]:
    """Return the first slices of slabs that cover a volume; the last step is shorter.

    Examples:
        >>> slab_starts(slices=9, slab=4, step=3)
        [0, 3, 5]
    """
    last = slices - slab
    return sorted({*range(0, last, step), last})


def blend(slabs: Mapping[int, Magnitudes], slices: int) -> Magnitudes:
    """Put slabs `(depth, H, W)`, by first slice, together to a volume.

    Where they overlap, the middle of a slab counts most.

    Examples:
        >>> blend({0: np.zeros((2, 1, 1)), 1: np.ones((2, 1, 1))}, 3).ravel()
        array([0. , 0.5, 1. ], dtype=float32)
    """
    plane = next(iter(slabs.values())).shape[1:]
    volume, total = np.zeros((slices, *plane)), np.zeros((slices, 1, 1))
    for start, slab in sorted(slabs.items()):
        rising = np.arange(1.0, len(slab) + 1)
        weight = np.minimum(rising, rising[::-1]).reshape(-1, 1, 1)
        volume[start : start + len(slab)] += weight * slab
        total[start : start + len(slab)] += weight
    return (volume / total).astype(np.float32)


def flip_and_turn(image: Tensor, generator: torch.Generator) -> Tensor:
    """Flip either axis, exchange the axes of a square, and turn the phase, by chance.

    Coils and slices of a complex image `(..., rows, cols)` are changed alike.
    """
    chance = torch.rand(4, generator=generator)
    axes = [axis - 2 for axis in (0, 1) if chance[axis] < 0.5]
    image = image.flip(axes)
    if chance[2] < 0.5 and image.shape[-2] == image.shape[-1]:
        image = image.mT
    return image * torch.polar(torch.ones(()), 2 * torch.pi * chance[3])
