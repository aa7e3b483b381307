"""Lightning's trainer, with whole checkpoints, a log, and lines of progress."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from mri_example.errors import InputError
from mri_example.metrics import METRICS
from mri_example.progress import LINES
from mri_example.training.checkpoints import WholeCheckpointIO

LOGGED = ("loss", *(f"validation_{metric}" for metric in METRICS))
DEFAULTS: dict[str, Any] = {
    "max_epochs": 50,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}


class ProgressLines(Callback):
    """Print step and loss every 20 seconds, where no terminal shows a bar."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Print the step and the loss, if it is time."""
        if LINES.due() and trainer.is_global_zero:
            loss = float(trainer.callback_metrics.get("loss", float("nan")))
            where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
            LINES.say(f"{where}, loss {loss:.4g}")

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Print how far the validation is, if it is time."""
        if LINES.due() and trainer.is_global_zero:
            LINES.say(f"epoch {trainer.current_epoch}, validation, slice {args[3] + 1}")


def make_trainer(output: Path, **options: Any) -> lightning.Trainer:
    """Make the trainer of a run.

    Args:
        output: Folder for `best.ckpt`, `last.ckpt` and `log/`.
        **options: Those of `lightning.Trainer`. `strategy="fsdp"` is FSDP2.

    Raises:
        InputError: If there is no such trainer here.
    """
    chosen = DEFAULTS | options
    chosen["default_root_dir"] = chosen.get("default_root_dir") or output
    chosen["callbacks"] = [*_list(chosen.get("callbacks")), *_callbacks(output)]
    chosen["logger"] = _loggers(output, chosen.get("logger"))
    chosen["plugins"] = [*_list(chosen.get("plugins")), WholeCheckpointIO()]
    if chosen.get("strategy") == "fsdp":
        chosen["strategy"] = _sharding(chosen)
    if not sys.stderr.isatty():
        chosen["enable_progress_bar"] = False
    try:
        trainer = lightning.Trainer(**chosen)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        named = ("accelerator", "devices", "strategy", "precision")
        said = ", ".join(f"{n} is {options[n]!r}" for n in named if n in options)
        raise InputError(
            f"{said or 'the trainer'}: this cannot be had here "
            f"({' '.join(str(error).split())}): choose others"
        ) from error
    _check(trainer, options)
    _check_callbacks(trainer)
    return trainer


def _check(trainer: lightning.Trainer, options: dict[str, Any]) -> None:
    """Find before training what Lightning finds in the middle of it."""
    if trainer.max_epochs == 0:
        raise InputError(
            "max_epochs is 0, but must be positive: give -1 for no limit of epochs"
        )
    if trainer.accumulate_grad_batches < 1:
        raise InputError(
            f"accumulate_grad_batches is {trainer.accumulate_grad_batches}, but must "
            f"be positive"
        )
    limit = trainer.limit_val_batches
    whole = limit == 0 or (isinstance(limit, float) and limit == 1)
    if not whole and not options.get("fast_dev_run"):
        raise InputError(
            f"limit_val_batches is {limit}, but volumes are validated whole: leave it "
            f"out, or give 0"
        )


def _check_callbacks(trainer: lightning.Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if monitor not in (None, *LOGGED):
            raise InputError(
                f"monitor of {type(callback).__name__} is {monitor!r}, but can only be "
                f"one of {', '.join(LOGGED)}"
            )
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if sharded and isinstance(callback, WeightAveraging):
            raise InputError(
                f"{type(callback).__name__} does not average weights that are sharded: "
                f"leave it out, or train with the strategy 'ddp'"
            )


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _callbacks(output: Path) -> list[Callback]:
    options: dict[str, Any] = {"dirpath": output, "enable_version_counter": False}
    highest: dict[str, Any] = {"monitor": "validation_ssim", "mode": "max"}
    best = ModelCheckpoint(filename="best", **highest, **options)
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **options)
    return [best, last, *([] if sys.stderr.isatty() else [ProgressLines()])]


def _loggers(output: Path, chosen: Any) -> list[Logger]:
    """Return CSV always, and TensorBoard where it is installed and none is chosen."""
    own = [] if isinstance(chosen, bool) else _list(chosen)
    board = any(find_spec(name) for name in ("tensorboard", "tensorboardX"))
    if board and chosen in (None, True):
        own = [TensorBoardLogger(output, name="tensorboard")]
    return [CSVLogger(output, name="log"), *own]


def _sharding(options: dict[str, Any]) -> ModelParallelStrategy:
    devices = options.get("devices", 1)
    devices = len(devices) if isinstance(devices, list | tuple) else devices
    if not str(devices).isdigit() or int(devices) < 1:
        raise InputError(
            f"devices is {devices!r}, but strategy 'fsdp' needs their number: give one"
        )
    return ModelParallelStrategy(
        data_parallel_size=int(devices) * int(options.get("num_nodes", 1)),
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )
