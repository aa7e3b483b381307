"""The data of a training run."""

import signal
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
from torch.utils.data import DataLoader, DistributedSampler

from mri_example.data.dataset import Sample, SliceDataset, flip_and_turn
from mri_example.data.files import KSpaceFile
from mri_example.errors import InputError, require, reworded
from mri_example.masks import Masks
from mri_example.metrics import comparable
from mri_example.models import Reconstructor


class EpochSampler(DistributedSampler[Sample]):
    """Let the masks and the augmentation of a data set follow from the epoch too.

    Lightning tells a sampler the epoch before the workers that load it are started,
    except in the epoch in which a run goes on, which `SliceData` must know.
    """

    dataset: SliceDataset

    def set_epoch(self, epoch: int) -> None:
        """Take up an epoch."""
        super().set_epoch(epoch)
        self.dataset.epoch = epoch


class SliceData(lightning.LightningDataModule):
    """Training and validation slices, or slabs, of a data root.

    Args:
        root: Folder with singlecoil_train and singlecoil_val, or multicoil_train and
            multicoil_val.
        masks: How k-space is undersampled.
        challenge: Which folders of the data root: singlecoil or multicoil.
        batch_size: Slices in one step of a process.
        crop: Rows and columns of the training images; needed if files differ in size.
        skip_thin: Leave out training volumes with fewer slices than a slab, by name.
        augment: Flip, transpose and turn the phase of training images.
        seed: What masks, augmentation and the order of the slices follow from.
        workers: Processes that load data.

    Attributes:
        first_epoch: The epoch in which the run begins, or goes on.
    """

    training: SliceDataset
    validation: SliceDataset

    def __init__(
        self,
        root: Path,
        masks: Masks = Masks(),
        challenge: Literal["singlecoil", "multicoil"] = "singlecoil",
        batch_size: int = 8,
        crop: tuple[int, int] | None = None,
        skip_thin: bool = False,
        augment: bool = True,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        check_range("batch_size", batch_size, batch_size > 0, "positive")
        check_range("workers", workers, workers >= 0, "0 or more")
        check_range("seed", seed, 0 <= seed < 2**32, "from 0 to 2**32 - 1")
        least = "at least one row and column"
        check_range("crop", crop, min(crop or (1, 1)) > 0, least)
        self.root, self.masks, self.workers = root, masks, workers
        self.batch_size, self.crop, self.seed = batch_size, crop, seed
        self.first_epoch = 0
        self._kept = {"challenge": challenge, "batch_size": batch_size, "crop": crop}
        self._kept |= {"skip_thin": skip_thin, "augment": augment, "seed": seed}

    def describe(self) -> dict[str, Any]:
        """Return what a run that goes on must not change."""
        return asdict(self.masks) | self._kept

    def files(self) -> dict[str, list[Any]]:
        """Return what tells the files of this run from others, by their names."""
        files = (*self.training.files, *self.validation.files)
        known = {f"{f.path.parent.name}/{f.path.name}": f.digest for f in files}
        if self.masks.file is not None:
            mask = sha256(Path(self.masks.file).read_bytes()).hexdigest()
            known[Path(self.masks.file).name] = [mask]
        return known

    def training_slices(self, model: Reconstructor) -> SliceDataset:
        """Return the training slices, or slabs, that a model takes."""
        options: dict[str, Any] = {"epoch": 0, "seed": self.seed, "crop": self.crop}
        options["skip_thin"] = self._kept["skip_thin"]
        options["augment"] = flip_and_turn if self._kept["augment"] else None
        return self._slices(model, "train", **options)

    def _slices(self, model: Reconstructor, split: str, **options: Any) -> SliceDataset:
        folder = self.root / f"{self._kept['challenge']}_{split}"
        of_model = {"coils": model.coils, "metadata": model.metadata}
        return SliceDataset(folder, self.masks, slab=model.slab, **options | of_model)

    def check(self, model: Reconstructor) -> None:
        """Look through all files, and load one sample of each size.

        Raises:
            InputError: If one cannot be used.
        """
        self.training = self.training_slices(model)
        _check_batches(self.training, self.batch_size)
        self.validation = self._slices(model, "val")
        if model.sensitivity is not None:
            self._check_maps(f"sensitivity is {model.sensitivity!r}, but")
        for file in self.validation.files:
            _check_scored(file)
        for dataset in (self.training, self.validation):
            first: dict[tuple[int, ...], int] = {}
            for i, (file, _) in enumerate(dataset.items):
                first.setdefault(file.shape[1:], i)
            for i in first.values():
                dataset[i]

    def _check_maps(self, said: str) -> None:
        text = f"{said} the masks tell slices apart, as in 3-D acquisitions, whose maps"
        require(not self.masks.encodes_slices, f"{text} are not estimated: set it null")
        for file in (*self.training.files, *self.validation.files):
            text = f"{said} {file.path} has a single coil, which needs no maps: set it "
            require(file.coils > 1, f"{text}null")

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the training slices of this rank, shuffled anew in every epoch."""
        run: Any = self.trainer
        sampler = EpochSampler(
            self.training, run.world_size, run.global_rank, seed=self.seed
        )
        sampler.set_epoch(self.first_epoch)
        return self._loader(sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation slices of this rank, one at a time.

        Volumes differ in size. Where the ranks do not divide the slices, some are
        validated twice, for every rank to have as many.
        """
        run: Any = self.trainer
        ranks = run.world_size, run.global_rank
        sampler = DistributedSampler[Sample](self.validation, *ranks, shuffle=False)
        return self._loader(sampler, 1)

    def _loader(
        self, sampler: DistributedSampler[Sample], batch_size: int
    ) -> DataLoader[Sample]:
        options: dict[str, Any] = {"num_workers": self.workers, "sampler": sampler}
        options["worker_init_fn"] = _ignore_sigterm
        return DataLoader(sampler.dataset, batch_size, **options)


def _ignore_sigterm(_: int) -> None:
    """Leave it to the process that reads what a worker loads, and ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def check_range(name: str, value: object, fits: bool, limit: str) -> None:
    """Refuse an option out of its range."""
    require(fits, f"{name} is {value}, but must be {limit}")


def _check_scored(file: KSpaceFile) -> None:
    """Make sure that a reconstruction of a file can be compared with its target."""
    target = file.target_volume()
    with reworded(f"{file.path} cannot be validated on: {{}}", InputError):
        comparable(target, np.zeros((file.slices, *file.crop)))


def _check_batches(training: SliceDataset, batch_size: int) -> None:
    """Make sure that what comes in one batch has the same size."""
    if batch_size == 1:
        return
    sizes = sorted({(f.crop[0], f.shape[-1]) for f in training.files})
    text = f"the training images have {len(sizes)} sizes, among them {sizes[0]} and "
    text += f"{sizes[-1]}: set `crop`, or a batch_size of 1"
    require(len(sizes) == 1 or training.crop is not None, text)
    coils = {f.coils: f.path for f in training.files}
    fewest, most = min(coils), max(coils)
    text = f"{coils[fewest]} has {fewest} coils and {coils[most]} {most}, but a batch "
    text += "needs as many of each: set a batch_size of 1, or separate the files"
    require(fewest == most, text)
