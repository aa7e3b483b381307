"""Pictures: reconstructions beside their targets, learning curves, memory."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mri_example.data.files import whole_file

COLORS = {"invert": "#0b6e4f", "checkpoint": "#c98a00", "store": "#b3261e"}
NAMES = {
    "invert": "invtorch (invert)",
    "checkpoint": "checkpoint every layer",
    "store": "plain autograd",
}
SMOOTH = 30  # steps of training that are averaged for the eye
STYLE: dict[Any, Any] = {
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


def compare(
    target: NDArray[Any],
    images: Mapping[str, NDArray[Any]],
    title: str,
    amplify: int = 4,
) -> Figure:
    """Draw one slice: images above, error maps below, all on one scale.

    Args:
        target: Magnitudes `(H, W)`.
        images: Reconstructions of it by the name of their method.
        title: What is shown.
        amplify: How much brighter errors are drawn than images.
    """
    size = (2.6 * (len(images) + 1), 5.6)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    axes = figure.subplots(2, len(images) + 1)
    limit = float(np.quantile(target, 0.998))
    for column, (name, image) in enumerate({**images, "target": target}.items()):
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=limit)
        axes[0, column].set_title(name, fontsize=10)
        if name != "target":
            error, most = 100 * np.abs(image - target) / limit, 100 / amplify
            shown = axes[1, column].imshow(error, cmap="magma", vmin=0, vmax=most)
            axes[1, column].set_title(f"error × {amplify}", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    bar = figure.colorbar(shown, cax=axes[1, -1].inset_axes((0.05, 0.1, 0.07, 0.8)))
    bar.set_label("absolute error, % of white", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=11)
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
    depths: Sequence[int], peaks: Mapping[str, Sequence[float]], title: str
) -> Figure:
    """Draw the peak memory of a training step against the number of layers.

    Args:
        depths: Numbers of layers.
        peaks: Bytes by memory strategy, one for each depth.
        title: What was measured.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axis = figure.subplots()
        for memory, values in peaks.items():
            megabytes, color = [value / 1e6 for value in values], COLORS[memory]
            axis.plot(depths, megabytes, "o-", color=color, lw=2)
            text, end = f"{NAMES[memory]}: {megabytes[-1]:.0f} MB", megabytes[-1]
            place: dict[str, Any] = {
                "xytext": (-4, 8),
                "textcoords": "offset points",
                "ha": "right",
            }
            axis.annotate(text, (depths[-1], end), color=color, **place)
        axis.set_xlabel("layers")
        axis.set_ylabel("peak of a training step, MB\n(without parameter gradients)")
        axis.set_ylim(bottom=0, top=1.15 * max(max(v) for v in peaks.values()) / 1e6)
        axis.set_xlim(left=0)
        axis.set_title(title, fontsize=10)
    return figure


def _curve(axis: Any, rows: Sequence[Mapping[str, str]], key: str, label: str) -> None:
    points = {int(r["step"]) + 1: float(r[key]) for r in rows if r.get(key)}
    steps, values = np.array(list(points)), np.array(list(points.values()))
    if len(values) > SMOOTH:
        axis.plot(steps, values, color=COLORS["invert"], alpha=0.25, lw=0.8)
        window = np.ones(SMOOTH) / SMOOTH
        steps, values = steps[SMOOTH - 1 :], np.convolve(values, window, "valid")
        axis.plot(steps, values, color=COLORS["invert"], lw=2)
    else:
        axis.plot(steps, values, "o-", color=COLORS["invert"])
    axis.set_xlabel("step")
    axis.set_title(label, fontsize=10)
