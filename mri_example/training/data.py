"""The loaders of a training run."""

from __future__ import annotations

from pathlib import Path

import lightning
import numpy as np
from torch.utils.data import DataLoader, DistributedSampler

from mri_example.data import KSpaceFile, Sample, SliceDataset
from mri_example.data.dataset import flip_and_turn
from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.metrics import nmse
from mri_example.model import ModelConfig
from mri_example.training.configuration import TrainingConfig


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
        root: Folder with `singlecoil_train` and `singlecoil_val`, or `multicoil_...`.
        mask_function: Draws the masks.
        config: Batch size, crop, seed and the like.
        model: The model that the data are for: its slabs, coils and kinds of scans.
        first_epoch: The epoch in which the run begins, or goes on.
    """

    def __init__(
        self,
        root: Path,
        mask_function: Masks,
        config: TrainingConfig,
        model: ModelConfig,
        first_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.first_epoch = first_epoch
        self.training = SliceDataset(
            root / f"{config.challenge}_train",
            mask_function,
            slab=model.slab,
            coils=model.coils,
            epoch=0,
            seed=config.seed,
            crop=config.crop,
            skip_thin=config.skip_thin,
            augment=flip_and_turn if config.augment else None,
            metadata=model.metadata,
        )
        _check_batches(self.training, config)
        self.validation = SliceDataset(
            root / f"{config.challenge}_val",
            mask_function,
            slab=model.slab,
            coils=model.coils,
            metadata=model.metadata,
        )
        for file in self.validation.files:
            _check_scored(file)
        _load_each_size(self.training)
        _load_each_size(self.validation)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the training slices of this rank, shuffled anew in every epoch."""
        trainer = self.trainer
        assert trainer is not None
        sampler = EpochSampler(
            self.training,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            seed=self.config.seed,
        )
        sampler.set_epoch(self.first_epoch)
        return DataLoader(
            self.training,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation slices of this rank, one at a time.

        Volumes differ in size. Where the ranks do not divide the slices, some are
        validated twice, for every rank to have as many.
        """
        trainer = self.trainer
        assert trainer is not None
        sampler: DistributedSampler[Sample] = DistributedSampler(
            self.validation,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            shuffle=False,
        )
        return DataLoader(
            self.validation,
            batch_size=1,
            sampler=sampler,
            num_workers=self.config.workers,
        )


def _check_scored(file: KSpaceFile) -> None:
    """Make sure that a reconstruction of a file can be compared with its target."""
    target = file.target_volume()
    try:
        nmse(target, np.zeros((file.slices, *file.crop)))
    except InputError as error:
        raise InputError(f"{file.path} cannot be validated on: {error}") from error


def _load_each_size(dataset: SliceDataset) -> None:
    """Load one sample of every size, so that what fits none is said at once."""
    first: dict[tuple[int, ...], int] = {}
    for i, (file, _) in enumerate(dataset.items):
        first.setdefault(file.shape[1:], i)
    for i in first.values():
        dataset[i]


def _check_batches(training: SliceDataset, config: TrainingConfig) -> None:
    """Make sure that what comes in one batch has the same size."""
    if config.batch_size == 1:
        return
    sizes = {(f.crop[0], f.shape[-1]) for f in training.files}
    if len(sizes) > 1 and config.crop is None:
        raise InputError(
            f"the training images have {len(sizes)} sizes, among them "
            f"{sorted(sizes)[0]} and {sorted(sizes)[-1]}: set `crop`, or a "
            f"batch_size of 1"
        )
    coils = {f.coils: f.path for f in training.files}
    if len(coils) > 1:
        fewest, most = min(coils), max(coils)
        raise InputError(
            f"{coils[fewest]} has {fewest} coils and {coils[most]} {most}, but a batch "
            f"needs as many of each: set a batch_size of 1, or separate the files"
        )
