"""What there is to see of a run: slices, curves, and a page that needs nothing else."""

import base64
import csv
import io
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mri_example.data.files import whole_file

AMPLIFY = 4  # how much brighter errors are drawn than images
LARGEST = 384  # pixels along a side of a picture
PIXELS = 5_000_000  # of all pictures: noise takes 0.9 bytes each, and a page 5 MB
SMOOTH = 30  # steps of training that are averaged for the eye
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=("#0b6e4f", "#c98a00", "#b3261e")),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
}
PACKAGES = ("invtorch", "torch", "lightning", "numpy")
Rows: TypeAlias = Sequence[Sequence[str]]
Colors: TypeAlias = NDArray[np.uint8]  # `(H, W, 3)`


@dataclass(frozen=True)
class Slice:
    """One slice as methods show it, and its target, magnitudes `(H, W)`.

    All images share one scale, whose white is the 99.8th percentile of the target.
    """

    title: str
    images: Mapping[str, NDArray[Any]]
    target: NDArray[Any]

    @property
    def white(self) -> float:
        """The magnitude that is drawn white."""
        return float(np.quantile(self.target, 0.998)) or 1.0

    def pictures(self) -> dict[str, Colors]:
        """Return the images in gray, the target last."""
        images = {**self.images, "target": self.target}
        return {n: _colored("gray", image / self.white) for n, image in images.items()}

    def errors(self) -> dict[str, Colors]:
        """Return the error maps."""
        errors = {n: np.abs(im - self.target) for n, im in self.images.items()}
        white = self.white / AMPLIFY
        return {n: _colored("magma", error / white) for n, error in errors.items()}

    def strip(self) -> Colors:
        """Return images, target and error map of the last image in a row."""
        *_, error = self.errors().values()
        return np.hstack([*self.pictures().values(), error])


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


def write_page(
    path: Path,
    title: str,
    lead: str,
    *,
    slices: Sequence[Slice],
    facts: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, Rows] = {},
    curves: Mapping[str, Figure] = {},
) -> Path:
    """Write a page, whole or not at all.

    Tables are rows of text below their head, and facts names and values, both by their
    titles; curves are figures by their captions.
    """
    count = sum(2 * len(shown.images) + 1 for shown in slices)
    side = min(LARGEST, math.isqrt(PIXELS // max(1, count)))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    text = page.render(
        title=title,
        lead=lead,
        tables=tables,
        slices=slices,
        curves=curves,
        facts=facts,
        brightest=100 // AMPLIFY,
        picture=partial(_picture, side=side),
        figure=_drawn,
    )
    with whole_file(path) as written:
        written.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


def versions() -> dict[str, str]:
    """Return what a run was made with."""
    return {"Python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def _colored(colormap: str, image: NDArray[Any]) -> Colors:
    """Return the colors of values from 0 to 1."""
    colors: Colors = mpl.colormaps[colormap](image, bytes=True)[..., :3]
    return colors


def _picture(colors: Colors, side: int) -> str:
    """Return an address that holds an image."""
    picture = Image.fromarray(colors)
    picture.thumbnail((side, side))
    written = io.BytesIO()
    picture.save(written, "webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"


def _drawn(figure: Figure) -> Markup:
    """Return a figure as SVG, black of which becomes the color of the page's text."""
    with mpl.rc_context({"svg.hashsalt": "0"}):
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    drawing = text[text.index("<svg") :].replace("#000000", "currentColor")
    return Markup(drawing)
