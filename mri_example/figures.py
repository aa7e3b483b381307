"""Pictures: reconstructions beside their targets, learning curves, memory."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from mri_example.data.files import whole_file
from mri_example.report import AMPLIFY, Slice

SMOOTH = 30  # steps of training that are averaged for the eye
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=("#0b6e4f", "#c98a00", "#b3261e")),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight")
    return path


def compare(shown: Slice) -> Figure:
    """Draw one slice: images above, error maps below, all on one scale."""
    images = {**shown.images, "target": shown.target}
    size = (2.6 * len(images), 5.6)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    axes = figure.subplots(2, len(images))
    for axis, (name, image) in zip(axes[0], images.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=shown.white)
        axis.set_title(name, fontsize=10)
    for axis, image in zip(axes[1, :-1], shown.images.values(), strict=True):
        error = 100 * np.abs(image - shown.target) / shown.white
        drawn = axis.imshow(error, cmap="magma", vmin=0, vmax=100 / AMPLIFY)
        axis.set_title(f"error × {AMPLIFY}", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    bar = figure.colorbar(drawn, cax=axes[1, -1].inset_axes((0.05, 0.1, 0.07, 0.8)))
    bar.set_label("absolute error, % of white", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(shown.title, fontsize=11)
    return figure


def learning_curve(log: Path) -> Figure:
    """Draw training loss and validation scores of all sittings of a run, by its log."""
    rows = []
    paths = sorted(log.glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    for path in paths:
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curve(left, rows, "loss", "training loss")
        left.set_yscale("log")
        _curve(right, rows, "validation_ssim", "validation SSIM")
    return figure


def memory_against_depth(
    depths: Sequence[int], peaks: Mapping[str, Sequence[int]], title: str
) -> Figure:
    """Draw the peaks of a training step, in bytes, against the number of layers.

    There is one for each depth, by memory strategy.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axis = figure.subplots()
        for memory, values in peaks.items():
            megabytes = np.array(values) / 1e6
            label = f'memory="{memory}": {megabytes[-1]:.0f} MB'
            axis.plot(depths, megabytes, "o-", lw=2, label=label)
        axis.legend(frameon=False)
        axis.set(xlabel="layers", xlim=(0, None), ylim=(0, None))
        axis.set_ylabel("peak of a training step, MB\n(without parameter gradients)")
        axis.set_title(title, fontsize=10)
    return figure


def _curve(axis: Any, rows: Sequence[Mapping[str, str]], key: str, label: str) -> None:
    points = {int(r["step"]) + 1: float(r[key]) for r in rows if r.get(key)}
    steps, values = np.array(list(points)), np.array(list(points.values()))
    if len(values) > SMOOTH:
        axis.plot(steps, values, color="C0", alpha=0.25, lw=0.8)
        window = np.ones(SMOOTH) / SMOOTH
        steps, values = steps[SMOOTH - 1 :], np.convolve(values, window, "valid")
        axis.plot(steps, values, color="C0", lw=2)
    else:
        axis.plot(steps, values, "o-", color="C0")
    axis.set_xlabel("step")
    axis.set_title(label, fontsize=10)
