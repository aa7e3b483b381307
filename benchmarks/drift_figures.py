"""Draw the depth study: errors of gradients and rebuilt inputs against depth."""

from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.record import read
from benchmarks.style import IMAGES, STYLE

LARGEST = 1e9  # stands for what is not finite

DRIFT = {
    "plain autograd": ("#b3261e", "-"),
    "inverted, no anchors": ("#8a8a8a", "-"),
    "inverted, 8 anchors (default)": ("#0b6e4f", "-"),
    "inverted, anchors=auto": ("#3b6fb6", "--"),
    "inverted, float64 state": ("#c98a00", ":"),
}


class Picture(NamedTuple):
    """One figure of the study.

    Attributes:
        name: The file, without its suffix.
        key: What is drawn, a key of the rows.
        what: What that is, in words.
        precision: Of which precision.
        lowest: Where the axis begins.
    """

    name: str
    key: str
    what: str
    precision: str
    lowest: float


PICTURES = (
    Picture(
        "drift_against_depth",
        "gradient_error",
        "Error of all gradients against float64, in single precision",
        "float32",
        1e-7,
    ),
    Picture(
        "rebuilt_input_against_depth",
        "rebuilt_error",
        "Error of the input that the backward pass rebuilds, in single precision",
        "float32",
        1e-16,
    ),
    Picture(
        "drift_in_half_precision",
        "gradient_error",
        "Error of all gradients, bfloat16 conditioners over a finer state",
        "bfloat16 conditioners, float32 state",
        1e-3,
    ),
)


def drift() -> None:
    """Draw the pictures of the study, by layer and strength."""
    rows = read("depth_full")["rows"]
    for picture in PICTURES:
        _draw([r for r in rows if r["precision"] == picture.precision], picture)


def _draw(rows: list[dict[str, Any]], picture: Picture) -> None:
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    strengths = sorted({r["strength"] for r in rows})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 7), layout="constrained", dpi=120)
        axes = figure.subplots(len(strengths), len(layers), sharex=True, sharey=True)
        for line, strength in zip(axes, strengths, strict=True):
            for axis, layer in zip(line, layers, strict=True):
                cell = [
                    r for r in rows if (r["layer"], r["strength"]) == (layer, strength)
                ]
                _draw_cell(axis, cell, picture)
            line[0].set_ylabel(f"conditioners × {strength:g}\nrelative error")
        for axis, layer in zip(axes[0], layers, strict=True):
            axis.set_title(layer)
        for axis in axes[-1]:
            axis.set_xlabel("layers")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        figure.suptitle(
            f"{picture.what} (crosses: the guard raises; above the frame: no digit is "
            f"right)",
            x=0.01,
            ha="left",
        )
        figure.savefig(IMAGES / f"{picture.name}.png")


def _draw_cell(axis: Any, cell: list[dict[str, Any]], picture: Picture) -> None:
    for name, (color, style) in DRIFT.items():
        rows = [r for r in cell if r["strategy"] == name]
        if not rows:
            continue
        depths = [r["depth"] for r in rows]
        found = [LARGEST if r[picture.key] is None else r[picture.key] for r in rows]
        errors = [min(max(e, picture.lowest), LARGEST) for e in found]
        axis.loglog(depths, errors, style, color=color, lw=1.6, label=name)
        refused = [r["refused"] > 0.5 for r in rows]
        axis.plot(
            [d for d, r in zip(depths, refused, strict=True) if r],
            [e for e, r in zip(errors, refused, strict=True) if r],
            "x",
            color=color,
        )
    axis.set_ylim(picture.lowest, 1)
    axis.grid(visible=True, alpha=0.2)
