"""One page of HTML that holds all there is to see of a run, and needs nothing else."""

from __future__ import annotations

import base64
import io
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mri_example.data.files import whole_file

AMPLIFY = 4  # how much brighter errors are drawn than images
LARGEST = 384  # pixels along a side of a picture
PIXELS = 5_000_000  # of all pictures: noise takes 0.9 bytes each, and a page 5 MB
PACKAGES = ("invtorch", "torch", "lightning", "numpy")


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, with a title and a note."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


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

    def pictures(self, side: int = LARGEST) -> dict[str, str]:
        """Return addresses that hold the images, the target last."""
        images = {**self.images, "target": self.target}
        return {n: _picture(image / self.white, side) for n, image in images.items()}

    def errors(self, side: int = LARGEST) -> dict[str, str]:
        """Return addresses that hold the error maps."""
        colors = mpl.colormaps["magma"]
        errors = {n: np.abs(im - self.target) for n, im in self.images.items()}
        return {
            name: _picture(colors(AMPLIFY * error / self.white), side)
            for name, error in errors.items()
        }

    def strip(self) -> NDArray[np.uint8]:
        """Return images, target and error map of the last image in a row, as colors."""
        images = [*self.images.values(), self.target]
        error = AMPLIFY * np.abs(images[-2] - self.target)
        row = [("gray", image) for image in images] + [("magma", error)]
        drawn = [mpl.colormaps[c](im / self.white, bytes=True) for c, im in row]
        return np.hstack(drawn)[..., :3]


@dataclass(frozen=True)
class Report:
    """What a page shows, from top to bottom.

    Attributes:
        title: What was run.
        lead: A sentence below it.
        tables: Scores.
        slices: Images with their targets and errors.
        curves: Figures by their captions.
        facts: Further names and values, by the title of their list.
    """

    title: str
    lead: str
    tables: Sequence[Table] = ()
    slices: Sequence[Slice] = ()
    curves: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    brightest = 100 // AMPLIFY

    @property
    def errors(self) -> int:
        """The number of error maps of a slice."""
        return max((len(shown.images) for shown in self.slices), default=0)

    @property
    def side(self) -> int:
        """Pixels along the longer side of a picture."""
        pictures = sum(2 * len(shown.images) + 1 for shown in self.slices)
        return min(LARGEST, math.isqrt(PIXELS // max(1, pictures)))

    def write(self, path: Path) -> Path:
        """Write the page, whole or not at all."""
        templates = FileSystemLoader(Path(__file__).parent)
        environment = Environment(
            loader=templates, autoescape=True, undefined=StrictUndefined
        )
        page = environment.get_template("report.html")
        with whole_file(path) as partial:
            text = page.render(report=self, drawn=_drawn)
            partial.write_bytes(text.encode("utf-8", "backslashreplace"))
        return path


def versions() -> dict[str, str]:
    """Return what a run was made with."""
    return {"Python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def _picture(image: NDArray[Any], side: int) -> str:
    """Return an address that holds an image of values from 0 to 1."""
    levels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    colors = levels if levels.ndim < 3 else levels[..., :3]  # no transparency
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
