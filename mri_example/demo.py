"""The main job on embedded data: train, reconstruct an unseen head, evaluate, draw."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mri_example.data import Simulation, simulate_demo
from mri_example.data.files import KSpaceFile, read_reconstruction, whole_file
from mri_example.evaluate import evaluate
from mri_example.figures import compare, learning_curve, memory_against_depth, save
from mri_example.metrics import Scores
from mri_example.model import IRIM2D, Reconstructor
from mri_example.model.configuration import Memory
from mri_example.reconstruct import Method, reconstruct, zero_filled
from mri_example.training import (
    MaskConfig,
    TrainingConfig,
    fit_once,
    load,
    step_memory,
)
from mri_example.training.checkpoints import load_checkpoint

MODEL = IRIM2D(
    channels=32, steps=6, hidden=(32, 32, 64, 64, 32), strides=(1, 2, 4, 4, 2)
)
TRAINING = TrainingConfig(
    epochs=15,
    epoch_steps=75,
    batch_size=1,
    learning_rate=4e-3,
    loss="l1",
    minutes=5.5,
)
MASKS = {4: MaskConfig("random", (0.08,), (4,)), 8: MaskConfig("random", (0.04,), (8,))}
SHOWN_SLICE = 30
COUPLINGS = (20, 60, 120, 200)


def demo(output: Path = Path("runs/demo")) -> None:
    """Train a small i-RIM on real heads and reconstruct one that it has never seen.

    Everything happens in one folder. What is there already is kept, and a run that was
    interrupted goes on. The k-space is simulated from real magnitude images, so the
    scores do not compare with those of the fastMRI leaderboard.

    Args:
        output: Folder for data, checkpoints, reconstructions, results and pictures.
    """
    start = time.monotonic()
    _say(
        "k-space is SIMULATED from real heads: scores do not compare with leaderboards"
    )
    written = simulate_demo(output / "data", Simulation())
    done = f"{len(written)} files simulated" if written else "all files were there"
    _say(f"data: {done} ({output}/data)")
    model = _trained(output)
    rows = _results(output, model)
    _say(_table(rows))
    _say(_verdict(rows))
    _print_memory(output / "data")
    for picture in _pictures(output):
        _say(f"picture: {picture}")
    _say(f"results: {output}/results.json, {time.monotonic() - start:.0f} s in all")


def _trained(output: Path) -> Reconstructor:
    """Train, unless that was finished before, and drop what an older model made."""
    run = output / "training"
    if (run / "done").exists():
        _say(f"training: done before ({run})")
    else:
        shutil.rmtree(output / "reconstructions", ignore_errors=True)
        for picture in PICTURES:
            (output / picture).unlink(missing_ok=True)
    last = fit_once(output / "data", run, MODEL, MaskConfig(), TRAINING)
    steps = load_checkpoint(last)["global_step"]
    _say(f"training: {steps} steps, {TRAINING.minutes:g} minutes at most ({last})")
    return load(last)


def _results(output: Path, model: Reconstructor) -> list[dict[str, Any]]:
    """Reconstruct the unseen head and score it; reconstructions that exist are kept."""
    test = output / "data" / "singlecoil_test"
    methods: dict[str, Method] = {"zero-filled": zero_filled, "i-RIM": model}
    rows: list[dict[str, Any]] = []
    for acceleration, masks in MASKS.items():
        for name, method in methods.items():
            folder = _folder(output, name, acceleration)
            if any(folder.glob("*.h5")):
                _say(f"reconstruction: done before ({folder})")
            else:
                reconstruct(method, test, folder, masks.build(), progress=False)
            scores = evaluate(test, folder).summary.mean
            rows.append(
                {"method": name, "acceleration": acceleration, **asdict(scores)}
            )
    with whole_file(output / "results.json") as partial:
        partial.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'method':12} {'acceleration':>12} {'NMSE':>8} {'PSNR':>8} {'SSIM':>7}"]
    for row in rows:
        scores = Scores(row["nmse"], row["psnr"], row["ssim"])
        lines.append(
            f"{row['method']:12} {row['acceleration']:11}x {scores.nmse:8.4f} "
            f"{scores.psnr:8.2f} {scores.ssim:7.4f}"
        )
    return "\n".join(lines)


def _verdict(rows: list[dict[str, Any]]) -> str:
    """Say whether the second method of each acceleration is better, and by how much."""
    gains, worse = [], []
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        at = f"at {after['acceleration']}x"
        gains.append(f"{after['psnr'] - before['psnr']:+.2f} dB {at}")
        better = {
            "NMSE": after["nmse"] < before["nmse"],
            "PSNR": after["psnr"] > before["psnr"],
            "SSIM": after["ssim"] > before["ssim"],
        }
        worse += [f"{name} {at}" for name, is_better in better.items() if not is_better]
    if worse:
        return (
            f"i-RIM is NOT better than zero-filled in {', '.join(worse)} "
            f"({', '.join(gains)}): training ends by the clock, and this machine was "
            f"too busy or too slow for it"
        )
    return f"i-RIM is better than zero-filled in all of them: {', '.join(gains)}"


def _print_memory(data: Path) -> None:
    kept: tuple[Memory, ...] = ("invert", "store")
    peaks = {
        memory: step_memory(data, replace(MODEL, memory=memory), MaskConfig(), TRAINING)
        for memory in kept
    }
    layers = len(MODEL.hidden) * MODEL.steps
    _say(
        f"peak memory of a training step ({layers} couplings, batch "
        f"{TRAINING.batch_size}): {peaks['invert'] / 1e6:.0f} MB with memory='invert', "
        f"{peaks['store'] / 1e6:.0f} MB with memory='store'"
    )


def _pictures(output: Path) -> list[Path]:
    """Draw what is not there yet."""
    paths = []
    for name, draw in PICTURES.items():
        paths.append(output / name)
        if not paths[-1].exists():
            save(draw(output), paths[-1])
    return paths


def _comparison(acceleration: int, output: Path) -> Figure:
    """Show a slice of the unseen head: zero-filled, reconstructed, target, errors."""
    path = next((output / "data" / "singlecoil_test").glob("*.h5"))
    target = KSpaceFile.inspect(path).target_volume()[SHOWN_SLICE]
    images = {
        name: read_reconstruction(_folder(output, name, acceleration) / path.name)
        for name in ("zero-filled", "i-RIM")
    }
    return compare(
        target,
        {name: volume[SHOWN_SLICE] for name, volume in images.items()},
        f"unseen head, {acceleration}x acceleration (simulated k-space)",
    )


def _learning_picture(output: Path) -> Figure:
    return learning_curve(output / "training" / "log")


def _memory_picture(output: Path) -> Figure:
    """Measure the step of deeper and deeper i-RIMs, and draw the peaks."""
    masks = MaskConfig()
    training = TrainingConfig(batch_size=1, fraction=1.0, crop=(64, 64))
    peaks: dict[Memory, list[float]] = {"store": [], "checkpoint": [], "invert": []}
    for couplings in COUPLINGS:
        model = IRIM2D(16, couplings // 5, (16,) * 5, (1, 2, 4, 2, 1))
        for memory, values in peaks.items():
            step = replace(model, memory=memory)
            values.append(step_memory(output / "data", step, masks, training))
    named = {str(memory): values for memory, values in peaks.items()}
    return memory_against_depth(COUPLINGS, named, "i-RIM, 64 × 64, 16 channels")


def _folder(output: Path, method: str, acceleration: int) -> Path:
    return output / "reconstructions" / f"{method}_{acceleration}x"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


PICTURES: dict[str, Callable[[Path], Figure]] = {
    "reconstruction_4x.png": partial(_comparison, 4),
    "reconstruction_8x.png": partial(_comparison, 8),
    "learning_curve.png": _learning_picture,
    "memory_against_depth.png": _memory_picture,
}
