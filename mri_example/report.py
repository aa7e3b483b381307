"""One page of HTML that holds all there is to see of a run, and needs nothing else."""

from __future__ import annotations

import base64
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
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mri_example.data.files import whole_file

AMPLIFY = 4  # how much brighter errors are drawn than images
LARGEST = 384  # pixels along a side of a picture
PIXELS = 5_000_000  # of all pictures: noise takes 0.9 bytes each, and a page 5 MB
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
