"""How much better networks are on heads they learned from: how far they overfit.

    python -m benchmarks.reproduce.gap [--run FOLDER] [--parts PARTS]

Every network that a comparison trained on single-coil data reconstructs the volumes of
its training, validation and test heads; there is a row for each volume. What was
reconstructed before is kept. The heads are of other contrasts and resolutions, so how
much better one network is on one head than on another says little by itself; that two
networks are ordered otherwise on the one than on the other does.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from benchmarks import record
from benchmarks.reproduce.methods import ACCELERATIONS, NETWORKS, Protocol, masks_of
from mri_example.errors import InputError, require
from mri_example.evaluate import evaluate
from mri_example.metrics import METRICS
from mri_example.progress import say
from mri_example.reconstruct import Method, reconstruct
from mri_example.training.checkpoints import load, load_checkpoint

PARTS = ("train", "val", "test")
Row = dict[str, Any]


def gap(
    run: Path = Path("runs/reproduce"),
    parts: tuple[str, ...] = PARTS,
    size: int = 64,
    name: str = "reproduce_gap",
) -> None:
    """Score the networks of a comparison on heads that they learned from, and others.

    Args:
        run: The output of `benchmarks.reproduce`.
        parts: Which heads: train, val or test.
        size: Rows and columns of the images of the comparison.
        name: Of the record.
    """
    folder, rows = run / "1_coils", []
    for path in sorted(folder.glob("*_*/last.ckpt")):
        method, seed = path.parent.name.rsplit("_", 1)
        if method not in NETWORKS:
            continue
        trained = load_checkpoint(path)["global_step"]
        network = load(path, model=type(NETWORKS[method].model(1, Protocol())))
        known = {"method": method, "seed": int(seed), "steps": trained}
        for part in parts:
            for row in scores(network, folder, path.parent.name, part, size):
                rows.append(known | row)
        say(f"{path.parent.name}: {_means(rows, known)}")
    require(rows, f"{folder} has no trained network: run benchmarks.reproduce before")
    record.write(name, {"size": size, "parts": parts}, rows)


def scores(
    network: Method, folder: Path, name: str, part: str, size: int
) -> Iterator[Row]:
    """Yield the scores of each volume at each acceleration."""
    data = folder / f"data/singlecoil_{part}"
    for acceleration in ACCELERATIONS:
        made = folder / f"gap/{name}_{part}_{acceleration}x"
        reconstruct(network, data, made, masks_of(1, size, (acceleration,)))
        for volume, values in evaluate(data, made).volumes.items():
            place = {"part": part, "volume": Path(volume).stem}
            yield place | {"acceleration": acceleration} | asdict(values)


def _means(rows: list[Row], known: Row) -> str:
    """Return the means over the volumes of each part."""
    own = [row for row in rows if known.items() <= row.items()]
    found = []
    for part in dict.fromkeys(row["part"] for row in own):
        for acceleration in ACCELERATIONS:
            of = {"part": part, "acceleration": acceleration}
            same = [row for row in own if of.items() <= row.items()]
            means = (statistics.fmean(row[m] for row in same) for m in METRICS)
            found.append(f"{part} {acceleration}x {_shown(*means)}")
    return "; ".join(found)


def _shown(nmse: float, psnr: float, ssim: float) -> str:
    return f"{nmse:.4f} {psnr:.2f} {ssim:.4f}"


if __name__ == "__main__":
    try:
        auto_cli(gap)
    except InputError as error:
        sys.exit(f"error: {error}")
