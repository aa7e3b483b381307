"""The command `fit`: Lightning's options, with our model, data and checks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.models import IRIM2D, MODELS, Reconstructor
from mri_example.training.data import SliceData, check_range
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask
from mri_example.training.trainer import DEFAULTS


def add_fit_options(parser: LightningArgumentParser) -> None:
    """Add what `fit` takes: `--trainer` is `lightning.Trainer`, `--data` `SliceData`.

    `--training` is `ReconstructionTask`, and `--model` the network that it trains.
    """
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="Folder for best.ckpt, last.ckpt and log/; a run goes on there.",
    )
    parser.add_argument(
        "--init",
        type=Path | None,
        default=None,
        help="A trained model, .ckpt or .safetensors, to start from.",
    )
    parser.add_argument(
        "--seed_everything", type=int, default=0, help="What all randomness follows."
    )
    parser.add_subclass_arguments(
        Reconstructor,
        "model",
        default={"class_path": f"{IRIM2D.__module__}.IRIM2D"},
        help=f"{', '.join(MODELS)}; --model.help NAME lists its options.",
    )
    of_ours: dict[str, Any] = {"skip": {"model", "masks", "seed"}, "instantiate": False}
    parser.add_class_arguments(ReconstructionTask, "training", **of_ours)
    parser.add_class_arguments(SliceData, "data", **of_ours)
    parser.add_class_arguments(Masks, "masks")
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": v for name, v in DEFAULTS.items()})


def run_fit(parser: LightningArgumentParser, config: Namespace) -> None:
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
    trainer: dict[str, Any] = vars(built.trainer)
    task = ReconstructionTask(built.model, **vars(built.training))
    data = SliceData(masks=built.masks, seed=seed, **vars(built.data))
    last = fit(task, data, config.output, init=config.init, **trainer)
    best = last.with_stem("best")
    if task.global_rank == 0:
        found = best if best.exists() else "none was written"
        sys.stdout.write(f"best checkpoint: {found}\n")
