"""Draw the figures of README and docs from the recorded results."""

from pathlib import Path

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


if __name__ == "__main__":
    memory()
    print(f"drawn: {IMAGES}/memory_against_depth.png")
