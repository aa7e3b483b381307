"""The command `fit`: its options, those of Lightning, its run, and its page."""

import time
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.models import IRIM2D, MODELS, Reconstructor
from mri_example.parser import Parser
from mri_example.progress import say
from mri_example.report import learning_curve, versions, write_page
from mri_example.training.checkpoints import CONFIGURATION
from mri_example.training.data import SliceData, check_range
from mri_example.training.fit import DEFAULTS, fit
from mri_example.training.module import ReconstructionTask

CURVES = "Loss of each step and its mean over 30 steps; SSIM of the validation volumes."


class FitParser(Parser, LightningArgumentParser):
    """A parser that knows Lightning's classes."""


def parser_of(**about: Any) -> FitParser:
    """Return the parser of `fit`.

    `--trainer` is `lightning.Trainer`, `--data` `SliceData`, `--training`
    `ReconstructionTask`, and `--model` the network that it trains.
    """
    parser = FitParser(**about)
    text = "Folder for best.ckpt, last.ckpt and log/; a run goes on there."
    parser.add_argument("--output", type=Path, required=True, help=text)
    text = "A trained model, a file or the name of one that is shipped, to start from."
    parser.add_argument("--init", type=Path | None, default=None, help=text)
    text = "What all randomness follows."
    parser.add_argument("--seed_everything", type=int, default=0, help=text)
    default = {"class_path": f"{IRIM2D.__module__}.IRIM2D"}
    text = f"{', '.join(MODELS)}, or the path of another class; --model.help NAME lists"
    text += " its options."
    parser.add_subclass_arguments(Reconstructor, "model", default=default, help=text)
    ours: dict[str, Any] = {"skip": {"model", "masks", "seed"}, "instantiate": False}
    parser.add_class_arguments(ReconstructionTask, "training", **ours)
    parser.add_class_arguments(SliceData, "data", **ours)
    parser.add_class_arguments(Masks, "masks")
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": v for name, v in DEFAULTS.items()})
    return parser


def run(parser: Parser, config: Namespace) -> None:
    """Train as the options say, and print where the best checkpoint is."""
    seed = config.seed_everything
    check_range("seed_everything", seed, 0 <= seed < 2**32, "from 0 to 2**32 - 1")
    torch.manual_seed(seed)
    try:
        built = parser.instantiate(config)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"the options cannot be used ({said}): change them") from error
    task = ReconstructionTask(built.model, **vars(built.training))
    data = SliceData(masks=built.masks, seed=seed, **vars(built.data))
    start = time.monotonic()
    last = fit(task, data, config.output, init=config.init, **vars(built.trainer))
    best = last.with_stem("best")
    if task.global_rank == 0:
        say(f"best checkpoint: {best if best.exists() else 'none was written'}")
        if task.started:
            page = training_page(task, config.output, time.monotonic() - start)
            say(f"report: {page}")


def training_page(task: ReconstructionTask, output: Path, seconds: float) -> Path:
    """Write the learning curves, two validation slices, and what the run was."""
    slices = [*task.validated_slices()]
    lead = f"{task.global_step:,} steps, {task.current_epoch} epochs, into {output}."
    gpu = task.device.type == "cuda"
    of = "tensors" if gpu else "the process"
    facts = {
        "Memory and time": {
            "this sitting": f"{seconds:.0f} s",
            "peak memory": f"{task.peak_megabytes:.0f} MB of {of}",
            "device": torch.cuda.get_device_name(task.device) if gpu else task.device,
        },
        "Configuration": task.notes[CONFIGURATION],
        "Versions": versions(),
    }
    curves = {CURVES: learning_curve(output / "log")}
    path = output / "report.html"
    return write_page(path, "Training", lead, slices=slices, facts=facts, curves=curves)
