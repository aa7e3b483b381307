"""The loaders of a training run."""

from __future__ import annotations

from pathlib import Path

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from mri_example.data import Sample, SliceDataset
from mri_example.data.slices import flip_and_turn
from mri_example.errors import InputError
from mri_example.sampling import MaskFunction
from mri_example.training.configuration import TrainingConfig


class SliceData(lightning.LightningDataModule):
    """Training and validation slices of a data root.

    Args:
        root: Folder with `singlecoil_train` and `singlecoil_val`.
        mask_function: Draws the masks.
        config: Batch size, crop, seed and the like.
    """

    def __init__(
        self, root: Path, mask_function: MaskFunction, config: TrainingConfig
    ) -> None:
        super().__init__()
        self.root, self.mask_function, self.config = root, mask_function, config
        sizes = {(f.crop[0], f.shape[-1]) for f in self._training(0).files}
        if len(sizes) > 1 and config.crop is None and config.batch_size > 1:
            raise InputError(
                f"the training images have {len(sizes)} sizes, among them "
                f"{sorted(sizes)[0]} and {sorted(sizes)[-1]}: set `crop`, or a "
                f"batch_size of 1"
            )
        self.validation = SliceDataset(root / "singlecoil_val", mask_function)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the loader of the present epoch; order and masks follow from it."""
        trainer = self.trainer
        assert trainer is not None
        dataset = self._training(trainer.current_epoch)
        sampler: DistributedSampler[Sample] = DistributedSampler(
            dataset,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            seed=self.config.seed,
        )
        sampler.set_epoch(trainer.current_epoch)
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation slices, one at a time: volumes differ in size."""
        return DataLoader(
            self.validation, batch_size=1, num_workers=self.config.workers
        )

    def _training(self, epoch: int) -> SliceDataset:
        return SliceDataset(
            self.root / "singlecoil_train",
            self.mask_function,
            epoch=epoch,
            seed=self.config.seed,
            crop=self.config.crop,
            augment=flip_and_turn if self.config.augment else None,
        )
