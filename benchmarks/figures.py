"""Draw the figures of README and docs from the recorded results."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.record import read

IMAGES = Path(__file__).parents[1] / "docs" / "images"
COLORS = {
    "plain autograd": "#b3261e",
    "checkpoint every layer": "#c98a00",
    "invtorch, 8 anchors (default)": "#0b6e4f",
    "invtorch, anchors=0": "#58a68a",
}
DRIFT = {
    "plain autograd": ("#b3261e", "-"),
    "inverted, no anchors": ("#8a8a8a", "-"),
    "inverted, 8 anchors (default)": ("#0b6e4f", "-"),
    "inverted, anchors=auto": ("#3b6fb6", "--"),
    "inverted, float64 state": ("#c98a00", ":"),
}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
APART = {"invtorch, 8 anchors (default)": 21, "invtorch, anchors=0": 5}


def memory() -> None:
    """Draw peak memory against depth."""
    record = read("memory")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained", dpi=150)
        axis = figure.subplots()
        for name, color in COLORS.items():
            rows = [row for row in record["rows"] if row["contender"] == name]
            depths = [row["depth"] for row in rows]
            peaks = [row["bytes"] / 1e6 for row in rows]
            axis.plot(depths, peaks, "o-", color=color, lw=2)
            axis.annotate(
                f"{name}: {peaks[-1]:,.0f} MB",
                (depths[-1], peaks[-1]),
                xytext=(8, APART.get(name, 0)),
                textcoords="offset points",
                va="center",
                color=color,
                annotation_clip=False,
            )
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("layers")
        axis.set_ylabel("activations at the peak, MB")
        axis.set_title("Memory of a training step (64 channels, 64 × 64)", loc="left")
        figure.savefig(IMAGES / "memory_against_depth.png")


def drift(study: str = "depth_full") -> None:
    """Draw the error of gradients against depth, by layer and strength."""
    rows = [r for r in read(study)["rows"] if r["precision"] == "float32"]
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
                _draw_drift(axis, cell)
            line[0].set_ylabel(f"conditioners × {strength:g}\nerror of the gradients")
        for axis, layer in zip(axes[0], layers, strict=True):
            axis.set_title(layer)
        for axis in axes[-1]:
            axis.set_xlabel("layers")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        figure.suptitle(
            "Error of all gradients against float64, in single precision "
            "(crosses: the guard raises; above the frame: no digit is right)",
            x=0.01,
            ha="left",
        )
        figure.savefig(IMAGES / "drift_against_depth.png")


def _draw_drift(axis: Any, cell: list[dict[str, Any]]) -> None:
    for name, (color, style) in DRIFT.items():
        rows = [r for r in cell if r["strategy"] == name]
        depths = [r["depth"] for r in rows]
        errors = [min(r["gradient_error"] or 1e9, 1e9) for r in rows]
        axis.loglog(depths, errors, style, color=color, lw=1.6, label=name)
        refused = [r["refused"] > 0.5 for r in rows]
        axis.plot(
            [d for d, r in zip(depths, refused, strict=True) if r],
            [e for e, r in zip(errors, refused, strict=True) if r],
            "x",
            color=color,
        )
    axis.set_ylim(1e-7, 1)
    axis.grid(visible=True, alpha=0.2)


if __name__ == "__main__":
    memory()
    drift()
    print(f"drawn: memory_against_depth.png and drift_against_depth.png in {IMAGES}")
