"""A training run: from a data root to checkpoints and a log."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from invtorch import DriftError
from mri_example.data import whole_file
from mri_example.errors import InputError
from mri_example.model import IRIM2D, ModelConfig
from mri_example.paths import make_folder
from mri_example.training.checkpoints import WholeCheckpointIO, check_same
from mri_example.training.configuration import (
    MaskConfig,
    TrainingConfig,
    plain,
)
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask

QUIET = (
    ".*does not have many workers.*",
    "GPU available but not used.*",
    ".*The number of training batches.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


def fit(
    data: Path,
    output: Path,
    model: ModelConfig = IRIM2D(),
    masks: MaskConfig = MaskConfig(),
    training: TrainingConfig = TrainingConfig(),
) -> Path:
    """Train a model on files in the fastMRI layout.

    A run that was interrupted goes on from the end of its last whole epoch, and on a
    CPU ends with the very weights it would have had.

    Args:
        data: Folder with `singlecoil_train` and `singlecoil_val`, or `multicoil_...`.
        output: Folder for `best.ckpt` (highest SSIM in validation), `last.ckpt` and
            `log/`.
        model: The model.
        masks: How k-space is undersampled.
        training: How the model is trained.

    Returns:
        The path of the best checkpoint.

    Raises:
        InputError: If data, configuration or a checkpoint in `output` cannot be used.
    """
    configuration = plain(model, masks, training)
    last = output / "last.ckpt"
    done = check_same(last, configuration) if last.exists() else 0
    slices = SliceData(data, masks.build(), training, model, first_epoch=done)
    files = {file.path.name: file for file in slices.validation.files}
    torch.manual_seed(training.seed)
    network = model.build()
    if training.coils_per_step is not None and not network.each_coil:
        raise InputError(
            f"coils_per_step is {training.coils_per_step}, but {type(model).__name__} "
            f"does not reconstruct each coil by itself: leave it null, or give an "
            f"i-RIM coils=null"
        )
    task = ReconstructionTask(network, training, files, configuration)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        trainer = _trainer(output, training)
        make_folder(output)
        with _stopping_well(trainer, task, output), _in_words(task, last):
            trainer.fit(task, slices, ckpt_path=last if last.exists() else None)
    return output / "best.ckpt"


def fit_once(
    data: Path,
    output: Path,
    model: ModelConfig,
    masks: MaskConfig,
    training: TrainingConfig,
) -> Path:
    """Train as `fit` does, unless that was finished before.

    Returns:
        The path of the last checkpoint.

    Raises:
        InputError: As `fit` does, also if what was finished was another run, or had
            another time.
    """
    last, done = output / "last.ckpt", output / "done"
    if not done.exists():
        fit(data, output, model, masks, training)
        with whole_file(done) as partial:
            partial.write_text(f"minutes: {float(training.minutes)}\n")
        return last
    check_same(last, plain(model, masks, training))
    limit = done.read_text().removeprefix("minutes: ").strip() or "unknown"
    if limit != str(float(training.minutes)):
        raise InputError(
            f"minutes is {training.minutes}, but the training in {output} is over, and "
            f"its limit was {limit}: train into another folder, or remove that one"
        )
    return last


@contextlib.contextmanager
def _stopping_well(
    trainer: lightning.Trainer, task: ReconstructionTask, output: Path
) -> Iterator[None]:
    try:
        yield
    except InputError:
        nothing = not (task.started and (output / "last.ckpt").exists())
        if nothing and trainer.is_global_zero:
            _remove_logs(trainer, output)
        raise
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise


@contextlib.contextmanager
def _in_words(task: ReconstructionTask, last: Path) -> Iterator[None]:
    """Say which step made states that are no numbers, or which checkpoint is none."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except DriftError as error:
        raise InputError(
            f"training stopped at step {task.global_step}: {error}"
        ) from error
    except Exception as error:  # of any kind, by what is damaged
        if task.started or not last.exists():
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{last} cannot be gone on from ({reason}): train into another folder"
        ) from error


def _remove_logs(trainer: lightning.Trainer, output: Path) -> None:
    """Remove what this run logged if it left nothing to go on from."""
    folders = [Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (*(f.parent for f in folders), output):
        with contextlib.suppress(OSError):  # somebody else keeps something there
            folder.rmdir()


def _trainer(output: Path, training: TrainingConfig) -> lightning.Trainer:
    try:
        return _unchecked_trainer(output, training)
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"accelerator is {training.accelerator!r}, devices {training.devices} and "
            f"precision {training.precision!r}, which cannot be had here "
            f"({' '.join(str(error).split())}): choose others"
        ) from error


def _unchecked_trainer(output: Path, training: TrainingConfig) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator=training.accelerator,
        devices=training.devices,
        precision=training.precision,  # type: ignore[arg-type]
        max_epochs=training.epochs,
        limit_train_batches=training.epoch_steps or 1.0,
        max_time=timedelta(minutes=training.minutes) if training.minutes else None,
        gradient_clip_val=training.clip,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        logger=CSVLogger(output, name="log"),
        plugins=[WholeCheckpointIO()],
        callbacks=[
            ModelCheckpoint(
                dirpath=output,
                filename="best",
                monitor="validation_ssim",
                mode="max",
                enable_version_counter=False,
            ),
            ModelCheckpoint(
                dirpath=output,
                filename="last",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ],
    )
