"""A training run: from a data root to checkpoints and a log."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from invtorch import DriftError
from mri_example.errors import InputError
from mri_example.models import Reconstructor, describe
from mri_example.paths import make_folder
from mri_example.training.checkpoints import CONFIGURATION, DATA, check_same, load
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask
from mri_example.training.trainer import DEFAULTS, make_trainer

KEPT = {  # options of the trainer that a run that goes on must not change
    "accumulate_grad_batches": 1,
    "gradient_clip_algorithm": None,
    "gradient_clip_val": DEFAULTS["gradient_clip_val"],
    "limit_train_batches": None,
    "max_time": None,
    "precision": None,
}
QUIET = (
    ".*does not have many workers.*",
    "GPU available but not used.*",
    ".*The number of training batches.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    "You're using the WeightAveraging callback with a model that overrides.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


def fit(
    task: ReconstructionTask,
    data: SliceData,
    output: Path,
    *,
    init: Path | None = None,
    **trainer: Any,
) -> Path:
    """Train a model on files in the fastMRI layout, and return the last checkpoint.

    A run that was interrupted goes on from the end of its last whole epoch, and on a
    CPU ends with the very weights it would have had. A run that is over is left as it
    is, or goes on if it is given more epochs.

    Args:
        task: The model, and how it is trained.
        data: The data.
        output: Folder for `best.ckpt` (highest SSIM in validation), `last.ckpt` and
            `log/`.
        init: A trained model whose weights the run starts from.
        **trainer: Options of `lightning.Trainer`.

    Raises:
        InputError: If data, configuration or a checkpoint in `output` cannot be used,
            or the run began with other data.
    """
    last = output / "last.ckpt"
    data.check(task.model)
    task.notes = _notes(task, data, init, trainer)
    start = last if last.exists() else None
    if start is not None:
        data.first_epoch, seconds = check_same(start, task.notes)
        if _is_over(start, data.first_epoch, seconds, trainer):
            return last
    elif init is not None:
        _start_from(task.model, init)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        engine = make_trainer(output, **trainer)
        make_folder(output)
        with _stopping_well(engine, task, output), _in_words(task, last):
            engine.fit(task, data, ckpt_path=start, weights_only=True)
    return last


def _is_over(last: Path, done: int, seconds: float, trainer: dict[str, Any]) -> bool:
    """Say whether a run has its epochs, or its time, behind it."""
    epochs = trainer.get("max_epochs", DEFAULTS["max_epochs"]) or 0
    limit = _seconds(trainer.get("max_time"))
    if 0 <= epochs < done:
        raise InputError(
            f"max_epochs is {epochs}, but {last} has {done} epochs behind it: give as "
            f"many at least, or train into another folder"
        )
    return bool(epochs == done or (limit and seconds >= limit))


def _start_from(model: Reconstructor, path: Path) -> None:
    """Give a model the weights of a trained one."""
    try:
        model.load_state_dict(load(path).state_dict())
    except RuntimeError as error:
        raise InputError(
            f"init is {path}, whose weights do not fit the model: choose the model and "
            f"the sizes that it was trained with"
        ) from error


def _notes(
    task: ReconstructionTask,
    data: SliceData,
    init: Path | None,
    trainer: dict[str, Any],
) -> dict[str, Any]:
    kept = {name: trainer.get(name, default) for name, default in KEPT.items()}
    kept["max_time"] = _seconds(kept["max_time"])
    configuration = describe(task.model) | task.options | data.describe() | kept
    configuration["init"] = None if init is None else str(init)
    return {CONFIGURATION: configuration, DATA: data.files()}


def _seconds(limit: Any) -> float | None:
    """Return a time limit, which Lightning takes in several forms, in seconds."""
    try:
        return Timer(limit).time_remaining()
    except (MisconfigurationException, AttributeError, TypeError) as error:
        raise InputError(
            f"max_time is {limit!r}, but must be written DD:HH:MM:SS"
        ) from error


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
        of_options = isinstance(error, MisconfigurationException | ValueError)
        if task.started or not (of_options or last.exists()):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if not last.exists():
            raise InputError(
                f"the trainer cannot begin ({reason}): change its options"
            ) from error
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
