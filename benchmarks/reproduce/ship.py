"""Write the best i-RIM as one small file: `python -m benchmarks.reproduce.ship`.

The training with the highest SSIM on the validation head is taken, whatever its scores
on the test head. Weights are kept in half precision. The card beside the file says what
it was trained on, and how well it reconstructs the test head as it lies there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks.record import read_commit
from benchmarks.reproduce.methods import ACCELERATIONS, masks_of
from mri_example.data.files import whole_file
from mri_example.errors import InputError, require
from mri_example.evaluate import evaluate
from mri_example.progress import say
from mri_example.reconstruct import reconstruct, zero_filled
from mri_example.training.checkpoints import (
    CONFIGURATION,
    SHIPPED,
    export,
    load,
    load_checkpoint,
)

METHOD = "i-RIM 2D"
CARD = """# {name}

An i-RIM 2D, trained from `benchmarks.reproduce`: `--checkpoint {name}` of the commands
`reconstruct` and `fit --init` takes it. It is a small model of a demonstration, not one for
diagnosis.

| | |
| --- | --- |
| network | `IRIM2D`, {parameters:,} parameters, kept in half precision |
| data | the embedded heads (`mri_example/data/embedded/NOTICE`): "sagittal", "average" and a part of "epi"; k-space **simulated** from their magnitudes, {size} x {size}, one coil |
| masks | random columns, 4x with 8 % and 8x with 4 % of them in the center |
| training | {steps:,} steps of {batch} slices, Adam, learning rate {rate}, loss "{loss}", seed {seed} |
| chosen by | SSIM of the validation head, {best:.4f}; trainings with other seeds: {others} |
| commit | {commit} |

Scores on the head "coronal", which it has never seen:

| acceleration | method | NMSE | PSNR | SSIM |
| --- | --- | --- | --- | --- |
{scores}

Scores on simulated k-space do not compare with those of the fastMRI leaderboard. The file
holds the whole configuration: `safetensors.safe_open(...).metadata()`.
"""  # noqa: E501 (rows of a table)


def ship(
    run: Path = Path("runs/reproduce"),
    name: str = "heads",
    output: Path = SHIPPED,
    size: int = 64,
) -> None:
    """Write the best i-RIM 2D of single-coil data of a comparison, with its card.

    Args:
        run: The output of `benchmarks.reproduce`.
        name: By which the command line knows it.
        output: Folder for the file and its card.
        size: Rows and columns of the images of the comparison.
    """
    folder, commit = run / "1_coils", read_commit()
    trained = {_validated(path): path for path in folder.glob(f"{METHOD}_*/best.ckpt")}
    require(trained, f"{folder} has no {METHOD}: run benchmarks.reproduce before")
    best, checkpoint = max(trained.items())
    file = output / f"{name}.safetensors"
    export(checkpoint, file, dtype=torch.float16)
    model, last = load(file), load_checkpoint(checkpoint.with_stem("last"))
    facts: dict[str, Any] = last[CONFIGURATION]
    rows = []
    for title, method in {"zero-filled": zero_filled, name: model}.items():
        for acceleration in ACCELERATIONS:
            made = run / "shipped" / f"{title}_{acceleration}x"
            masks = masks_of(1, size, (acceleration,))
            reconstruct(method, folder / "data/singlecoil_test", made, masks)
            mean = evaluate(folder / "data/singlecoil_test", made).summary.mean
            scores = f"{mean.nmse:.4f} | {mean.psnr:.2f} dB | {mean.ssim:.4f}"
            rows.append(f"| {acceleration}x | {title} | {scores} |")
    card = CARD.format(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=last["global_step"],
        batch=facts["batch_size"],
        rate=facts["learning_rate"],
        loss=facts["loss"],
        seed=facts["seed"],
        size=size,
        best=best,
        others=len(trained) - 1,
        commit=commit,
        scores="\n".join(sorted(rows)),
    )
    with whole_file(file.with_suffix(".md")) as written:
        written.write_text(card)
    say(f"written: {file} ({file.stat().st_size / 1e6:.1f} MB) and its card")


def _validated(checkpoint: Path) -> float:
    """Return the SSIM of the validation head that a checkpoint was kept for."""
    scores = [
        float(state["best_model_score"])
        for state in load_checkpoint(checkpoint)["callbacks"].values()
        if state.get("monitor") == "validation_ssim"
    ]
    return scores[0]


if __name__ == "__main__":
    try:
        auto_cli(ship)
    except InputError as error:
        sys.exit(f"error: {error}")
