"""The main job on embedded data: train, reconstruct an unseen head, evaluate, draw."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from invtorch.planning import measure_memory
from mri_example.data import Simulation, simulate_demo
from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.data.writing import whole_file
from mri_example.evaluation import evaluate
from mri_example.figures import compare, learning_curve, memory_against_depth, save
from mri_example.metrics import Scores
from mri_example.model import IRIM2D, Reconstructor, SubsampledNMSE
from mri_example.model.configuration import Memory
from mri_example.reconstruction import Method, reconstruct, zero_filled
from mri_example.training import (
    MaskConfig,
    TrainingConfig,
    fit_once,
    load,
)

MODEL = IRIM2D(
    channels=32, steps=6, hidden=(32, 32, 64, 64, 32), strides=(1, 2, 4, 4, 2)
)
TRAINING = TrainingConfig(
    epochs=3, batch_size=2, fraction=1.0, learning_rate=2e-3, minutes=5.5
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
    _say(_gains(rows))
    _print_memory()
    for picture in _pictures(output):
        _say(f"picture: {picture}")
    _say(f"results: {output}/results.json, {time.monotonic() - start:.0f} s in all")


def _trained(output: Path) -> Reconstructor:
    run = output / "training"
    if (run / "done").exists():
        _say(f"training: done before ({run}/last.ckpt)")
    return load(fit_once(output / "data", run, MODEL, MaskConfig(), TRAINING))


def _results(output: Path, model: Reconstructor) -> list[dict[str, Any]]:
    test = output / "data" / "singlecoil_test"
    methods: dict[str, Method] = {"zero-filled": zero_filled, "i-RIM": model}
    rows: list[dict[str, Any]] = []
    for acceleration, masks in MASKS.items():
        for name, method in methods.items():
            folder = _folder(output, name, acceleration)
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


def _gains(rows: list[dict[str, Any]]) -> str:
    """Say by how much the second method of each acceleration is better."""
    pairs = zip(rows[::2], rows[1::2], strict=True)
    gains = [
        f"{after['psnr'] - before['psnr']:+.2f} dB at {before['acceleration']}x"
        for before, after in pairs
    ]
    return f"i-RIM against zero-filled: {', '.join(gains)}"


def _print_memory() -> None:
    kept: tuple[Memory, ...] = ("invert", "store")
    peaks = {memory: _peak(replace(MODEL, memory=memory)) for memory in kept}
    layers = len(MODEL.hidden) * MODEL.steps
    _say(
        f"peak memory of a training step ({layers} couplings, batch "
        f"{TRAINING.batch_size}): {peaks['invert'] / 1e6:.0f} MB with memory='invert', "
        f"{peaks['store'] / 1e6:.0f} MB with memory='store'"
    )


def _pictures(output: Path) -> list[Path]:
    path = next((output / "data" / "singlecoil_test").glob("*.h5"))
    target = KSpaceFile.inspect(path).target_volume()[SHOWN_SLICE]
    pictures = []
    for acceleration in MASKS:
        images = {
            name: read_reconstruction(_folder(output, name, acceleration) / path.name)
            for name in ("zero-filled", "i-RIM")
        }
        figure = compare(
            target,
            {name: volume[SHOWN_SLICE] for name, volume in images.items()},
            f"unseen head, {acceleration}x acceleration (simulated k-space)",
        )
        pictures.append(save(figure, output / f"reconstruction_{acceleration}x.png"))
    curve = learning_curve(output / "training" / "log")
    pictures.append(save(curve, output / "learning_curve.png"))
    pictures.append(_memory_picture(output))
    return pictures


def _memory_picture(output: Path) -> Path:
    """Measure the step of deeper and deeper i-RIMs, and draw the peaks."""
    peaks: dict[Memory, list[float]] = {"store": [], "checkpoint": [], "invert": []}
    for couplings in COUPLINGS:
        steps = couplings // 5
        model = IRIM2D(16, steps, (16,) * 5, (1, 2, 4, 2, 1))
        for memory, values in peaks.items():
            values.append(_peak(replace(model, memory=memory), size=64, batch=1))
    named = {str(memory): values for memory, values in peaks.items()}
    figure = memory_against_depth(COUPLINGS, named, "i-RIM, 64 × 64, 16 channels")
    return save(figure, output / "memory_against_depth.png")


def _peak(config: IRIM2D, size: int = 96, batch: int = TRAINING.batch_size) -> int:
    """Return the peak of a step above its parameter gradients, in bytes."""
    model = config.build()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    image = torch.randn(batch, 1, size, size, dtype=torch.complex64)
    mask = (torch.rand(batch, 1, 1, size) < 0.3).float()
    loss = SubsampledNMSE(1.0)
    return measure_memory(lambda: loss(model(image, mask), image).backward()).peak


def _folder(output: Path, method: str, acceleration: int) -> Path:
    return output / "reconstructions" / f"{method}_{acceleration}x"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
