"""A training run: from a data root to checkpoints and a log."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from PIL import Image
from torch.distributed import DistError

from invtorch import DriftError
from mri_example.data.files import whole_file
from mri_example.errors import InputError, require, reworded
from mri_example.metrics import METRICS
from mri_example.models import Reconstructor, describe
from mri_example.progress import LINES
from mri_example.training.checkpoints import (
    CONFIGURATION,
    DATA,
    OTHER,
    STOPPED,
    check_same,
    load,
    load_checkpoint,
)
from mri_example.training.data import SliceData, check_range
from mri_example.training.module import ReconstructionTask

LOGGED = ("loss", *(f"validation_{metric}" for metric in METRICS))
DEFAULTS: dict[str, Any] = {
    "max_epochs": 50,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}
KEPT = (  # attributes of the trainer that a run that goes on must not change
    "accumulate_grad_batches",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "max_steps",
    "precision",
    "world_size",
)
LOWER = ": lower batch_size, crop or workers"
ENDS = (  # of a training: types of errors, or words in them, and the way out
    (DriftError, "DriftError", ""),
    (torch.OutOfMemoryError, "worker (pid", LOWER),
    (ConnectionError, "worker (pid", LOWER),  # of a worker that was killed
    (OSError, "[Errno", ": {} cannot be written, make room and go on"),
    (DistError, "gloo/", ": another process ended, see what that says, and go on"),
)
PICTURES = 10  # beside the CSV: those of two volumes and five epochs
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
    """Train a model on files in the fastMRI layout.

    A run that was interrupted goes on from the end of its last whole epoch, and on a
    CPU ends with the very weights it would have had. A run that is over is left as it
    is, or goes on if it is given more epochs. The last checkpoint is returned.

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
    output = output.expanduser()  # as Lightning does
    last = output / "last.ckpt"
    data.check(task.model)
    if init is not None and not last.exists():
        _start_from(task.model, init)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        engine = make_trainer(output, **trainer)
        task.notes = _notes(task, data, init, engine)
        with _alone(engine, output), _in_words(engine, task, last):
            start = last if last.exists() else None
            if start is not None:
                checkpoint = check_same(start, task.notes)
                data.first_epoch = checkpoint["epoch"] + 1
                if _is_over(engine, last, checkpoint):
                    return last
            engine.fit(task, data, ckpt_path=start, weights_only=True)
            text = "no step was trained: raise limit_train_batches, max_steps, max_time"
            trained = engine.global_step or getattr(engine, "fast_dev_run", False)
            require(trained, text)
    return last


def _notes(
    task: ReconstructionTask, data: SliceData, init: Path | None, engine: Any
) -> dict[str, Any]:
    """Return what a checkpoint is checked against, in types that JSON knows."""
    clocks = (c for c in engine.callbacks if isinstance(c, callbacks.Timer))
    kept = {name: getattr(engine, name) for name in KEPT}
    kept["max_time"] = next((clock.time_remaining() for clock in clocks), None)
    kept["init"] = None if init is None else str(init)
    configuration = describe(task.model) | task.options | data.describe() | kept
    return {CONFIGURATION: json.loads(json.dumps(configuration)), DATA: data.files()}


def _is_over(engine: Any, last: Path, checkpoint: dict[str, Any]) -> bool:
    """Say whether a run has its epochs behind it, or was stopped early, or by time."""
    done = checkpoint["epoch"] + 1
    epochs = -1 if engine.max_epochs is None else engine.max_epochs
    text = f"max_epochs is {epochs}, but {last} has {done} epochs behind it: give as "
    require(not 0 <= epochs < done, f"{text}many at least, or {OTHER}")
    stop = (callbacks.EarlyStopping, callbacks.Timer)
    stops = any(isinstance(callback, stop) for callback in engine.callbacks)
    return bool(epochs == done or (stops and checkpoint.get(STOPPED)))


def _start_from(model: Reconstructor, path: Path) -> None:
    """Give a model the weights of a trained one."""
    text = f"init is {path}, whose weights do not fit the model: choose the model that "
    with reworded(f"{text}it was trained with", RuntimeError):
        model.load_state_dict(load(path, model=type(model)).state_dict())


@contextlib.contextmanager
def _alone(trainer: lightning.Trainer, output: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it while this one lives."""
    file = output.exists() and not output.is_dir()
    require(not file, f"output is {output}, which is a file: choose a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"output is {output}, which cannot be made ({error.strerror}): choose a "
        raise InputError(f"{text}folder that you can write to") from error
    if not trainer.is_global_zero:
        yield
        return
    path = output / ".lock"
    with _locked(path):
        for partial in output.glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        try:
            yield
        finally:  # before another run can have the lock
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something is there
                output.rmdir()


def _locked(path: Path) -> TextIO:
    """Open a file that no other process has locked.

    A POSIX lock ends with its process, by SIGKILL too, and forked workers have none.
    """
    where = f"output is {path.parent}, where"
    unable = f"{where} no file can be locked ({{}}): choose another folder"
    busy = f"{where} another run is training: wait for its end, or {OTHER}"
    while True:
        with contextlib.ExitStack() as closed:
            with reworded(unable, OSError):
                file = closed.enter_context(path.open("a"))
                with reworded(busy, BlockingIOError):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # a run that ended removed it
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    closed.pop_all()
                    return file


@contextlib.contextmanager
def _in_words(
    engine: lightning.Trainer, task: ReconstructionTask, last: Path
) -> Iterator[None]:
    """Say in one sentence what ended a run; one that leaves nothing leaves no logs."""
    folders = [Path(log.log_dir) for log in engine.loggers if log.log_dir]
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise
    except Exception as error:
        nothing = engine.is_global_zero and not (task.started and last.exists())
        for folder in new if nothing else ():  # to go on from
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # somebody else keeps something there
                folder.parent.rmdir()
        said = _said(error, task, last)
        if said is None:
            raise
        raise InputError(said) from error


def _said(error: Exception, task: ReconstructionTask, last: Path) -> str | None:
    """Return a sentence for an error that has none, unless it is an internal one."""
    if isinstance(error, InputError | MemoryError):
        return None
    said = " ".join(str(error).split())
    for kind, words, cure in ENDS:
        if isinstance(error, kind) or words in said:
            cure = cure.format(last.parent)
            return f"training stopped at step {task.global_step}: {said}{cure}"
    if task.started:
        return None
    text, cure = "the trainer cannot begin", "change its options"
    if last.exists():
        text, cure = f"{last} cannot be gone on from", OTHER
    return f"{text} ({type(error).__name__}: {said[:200]}): {cure}"


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints to a temporary name, and load them as plain data."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any
    ) -> None:
        """Write a checkpoint and rename it into place."""
        with whole_file(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Load a checkpoint; objects that would execute code are refused."""
        return load_checkpoint(Path(path))


class ProgressLines(callbacks.Callback):
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


class Pictures(callbacks.Callback):
    """Log a slice of each volume that a validation keeps, beside target and error."""

    def on_validation_end(self, trainer: lightning.Trainer, task: Any) -> None:
        """Give TensorBoard all pictures, and keep the last few beside the CSV."""
        for shown in task.validated_slices() if trainer.is_global_zero else ():
            for logger in trainer.loggers:
                board: Any = getattr(logger, "experiment", None)
                if isinstance(logger, loggers.CSVLogger):
                    name = f"epoch_{trainer.current_epoch:04}, {shown.title}.png"
                    path = Path(logger.log_dir) / "pictures" / name
                    with whole_file(path) as partial:
                        Image.fromarray(shown.strip()).save(partial, "png")
                    for old in sorted(path.parent.glob("epoch_*"))[:-PICTURES]:
                        old.unlink()
                elif hasattr(board, "add_image"):
                    picture = f"validation/{shown.title}", shown.strip()
                    board.add_image(*picture, trainer.global_step, dataformats="HWC")


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
    bars = [c for c in chosen["callbacks"] if isinstance(c, callbacks.ProgressBar)]
    if not (bars or sys.stderr.isatty()):
        chosen["enable_progress_bar"] = False
    try:
        trainer = lightning.Trainer(**chosen)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        told = {n: v for n, v in options.items() if isinstance(v, str) and v != "auto"}
        named = [f"{name} is {v!r}" for name, v in told.items() if v in reason]
        text = f"{', '.join(named) or 'the trainer'}: this cannot be had here"
        raise InputError(f"{text} ({reason}): choose others") from error
    _check(trainer, options)
    return trainer


def _check(trainer: Any, options: dict[str, Any]) -> None:
    """Find before training what Lightning finds in the middle of it."""
    epochs, steps = trainer.max_epochs, trainer.accumulate_grad_batches
    check_range("max_epochs", epochs, epochs != 0, "positive, or -1 for no limit")
    check_range("accumulate_grad_batches", steps, steps >= 1, "positive")
    clip, every = trainer.gradient_clip_val, trainer.check_val_every_n_epoch
    check_range("gradient_clip_val", clip, clip is None or clip >= 0, "0 or more")
    check_range("check_val_every_n_epoch", every, every != 0, "positive")
    interval = trainer.val_check_interval
    check_range("val_check_interval", interval, interval != 0, "positive")
    limit, few = trainer.limit_val_batches, options.get("overfit_batches")
    said = f"overfit_batches is {few}" if few else f"limit_val_batches is {limit}"
    whole = limit == 0 or (isinstance(limit, float) and limit == 1)
    text = f"{said}, but volumes are validated whole: give 0"
    require(whole or options.get("fast_dev_run"), text)
    strategy = trainer.strategy
    torchrun, size = TorchElasticEnvironment(), trainer.world_size
    started = torchrun.world_size() if torchrun.detect() else size
    text = f"torchrun started {started} processes, but devices and num_nodes make "
    require(started == size, f"{text}{size}: give as many")
    text = f"strategy is {options.get('strategy')!r}, whose processes copy the network"
    copied = isinstance(strategy.launcher, _MultiProcessingLauncher)
    require(not copied, f"{text}: choose 'ddp'")
    for callback in trainer.callbacks:
        monitor, name = getattr(callback, "monitor", None), type(callback).__name__
        stops = isinstance(callback, callbacks.EarlyStopping)
        logged = LOGGED[:1] if stops and limit == 0 else LOGGED
        text = f"monitor of {name} is {monitor!r}, but can only be one of "
        require(monitor in (None, *logged), text + ", ".join(logged))
        sharded = isinstance(strategy, ModelParallelStrategy)
        averages = isinstance(callback, callbacks.WeightAveraging)
        text = f"{name} does not average weights that are sharded: leave it out, or "
        require(not (sharded and averages), f"{text}train with the strategy 'ddp'")


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _callbacks(output: Path) -> list[callbacks.Callback]:
    options: dict[str, Any] = {"dirpath": output, "enable_version_counter": False}
    highest: dict[str, Any] = {"monitor": "validation_ssim", "mode": "max"}
    best = callbacks.ModelCheckpoint(filename="best", **highest, **options)
    options["save_on_train_epoch_end"] = True
    last = callbacks.ModelCheckpoint(filename="last", **options)
    own = [best, last, Pictures()]
    if not sys.stderr.isatty():
        own.append(ProgressLines())
    terminate = signal.getsignal(signal.SIGTERM)
    if callable(terminate):  # Lightning's waits for the other processes, maybe for ever
        restored = callbacks.LambdaCallback(
            on_train_start=lambda *_: signal.signal(signal.SIGTERM, terminate)
        )
        own.append(restored)
    return own


def _loggers(output: Path, chosen: Any) -> list[loggers.Logger]:
    """Return CSV always, and TensorBoard where it is installed and none is chosen."""
    own = [] if isinstance(chosen, bool) else _list(chosen)
    board = find_spec("tensorboard") or find_spec("tensorboardX")
    if board and chosen in (None, True):
        own = [loggers.TensorBoardLogger(output, name="tensorboard")]
    return [loggers.CSVLogger(output, name="log"), *own]


def _sharding(options: dict[str, Any]) -> ModelParallelStrategy:
    devices = options.get("devices", 1)
    devices = len(devices) if isinstance(devices, list | tuple) else devices
    known = str(devices).isdigit() and int(devices) > 0
    check_range("devices", repr(devices), known, "a number with the strategy 'fsdp'")
    return ModelParallelStrategy(
        data_parallel_size=int(devices) * int(options.get("num_nodes", 1)),
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )
