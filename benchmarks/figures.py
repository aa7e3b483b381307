"""Draw the figures of README and docs from the recorded results."""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.drift_figures import drift
from benchmarks.record import read
from benchmarks.style import IMAGES, STYLE
from benchmarks.time import REFERENCE

LOSSES = {
    "inverted (default)": ("#0b6e4f", "-", 3.0),
    "checkpoint": ("#111111", "--", 1.0),
}
COLORS = {
    "plain autograd": "#b3261e",
    "checkpoint every layer": "#c98a00",
    "checkpoint in √L segments": "#7d5a3c",
    "MemCNN": "#3b6fb6",
    "revlib": "#8e44ad",
    "invtorch, 8 anchors (default)": "#0b6e4f",
    "invtorch, anchors=0": "#58a68a",
    "plain autograd, paper's form": "#e08b84",
    "the same, PyTorch's convolutions": "#e6b8b4",
}
LEADER = {"arrowstyle": "-", "lw": 0.8, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
PAPER = "paper's layer"
MEMORY = {
    PAPER: "memory_against_depth",
    f"{PAPER}, 3-D": "memory_of_volumes",
    "additive coupling": "memory_of_additive_couplings",
}  # the figure of each network


def memory() -> None:
    """Draw peak memory against depth, a figure for each network that was measured."""
    record = read("memory")
    for network, name in MEMORY.items():
        rows = [r for r in record["rows"] if r.get("network", PAPER) == network]
        if rows:
            draw_memory(rows, name)


def draw_memory(rows: list[dict[str, Any]], name: str) -> None:
    """Draw a curve for each contender, its name at the end."""
    space = " × ".join(map(str, rows[0]["space"]))
    state = f"{rows[0]['channels']} channels of {space}"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained", dpi=150)
        axis = figure.subplots()
        last = max(row["depth"] for row in rows)
        ends = {r["contender"]: r["bytes"] / 1e6 for r in rows if r["depth"] == last}
        heights = apart(ends, gap=0.065 * max(ends.values()))
        for contender, color in COLORS.items():
            members = [row for row in rows if row["contender"] == contender]
            if not members:
                continue
            depths = [row["depth"] for row in members]
            axis.plot(
                depths, [r["bytes"] / 1e6 for r in members], "o-", color=color, lw=2
            )
            axis.annotate(
                f"{contender}: {ends[contender]:,.0f} MB",
                (last, ends[contender]),
                xytext=(1.08 * last, heights[contender]),
                arrowprops={"color": color} | LEADER,
                va="center",
                color=color,
                annotation_clip=False,
            )
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("layers")
        axis.set_ylabel("activations at the peak, MB")
        title = f"Memory of a training step, {rows[0]['network']}"
        axis.set_title(f"{title}: {state}", loc="left")
        figure.savefig(IMAGES / f"{name}.png")


def apart(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Lift labels, from the lowest up, until none covers the one below it."""
    found: dict[str, float] = {}
    free = gap / 2
    for name in sorted(heights, key=lambda name: heights[name]):
        found[name] = max(heights[name], free)
        free = found[name] + gap
    return found


def time() -> None:
    """Draw the time of a step of every contender, in units of plain autograd."""
    rows = [row for row in read("time")["rows"] if row["contender"] != REFERENCE]
    cases = [*dict.fromkeys((row["case"], row["depth"]) for row in rows)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 6), layout="constrained", dpi=130)
        axis = figure.subplots()
        for contender, color in COLORS.items():
            own = [row for row in rows if row["contender"] == contender]
            if own:
                place = 0.09 * ([*COLORS].index(contender) - len(COLORS) / 2)
                where = [(row["case"], row["depth"]) for row in own]
                heights = [cases.index(case) + place for case in where]
                ratios = [row["ratio"] for row in own]
                axis.plot(ratios, heights, "o", ms=5, color=color, label=contender)
        axis.axvline(1, color=COLORS[REFERENCE], lw=1)
        axis.text(1.01, -0.55, REFERENCE, color=COLORS[REFERENCE], va="bottom")
        labels = [f"{case}\n{depth} layers" for case, depth in cases]
        axis.set_yticks(range(len(cases)), [s.replace(" x ", " × ") for s in labels])
        for between in range(1, len(cases)):
            axis.axhline(between - 0.5, color="#dddddd", lw=0.8)
        axis.set_ylim(len(cases) - 0.5, -0.5)
        axis.set_xlabel("time of a training step, in units of plain autograd")
        title = "Time of a training step, one thread of a CPU"
        axis.set_title(title, loc="left", pad=20)
        place = {"loc": "outside lower center", "ncols": 2, "fontsize": 8.5}
        figure.legend(frameon=False, **place)
        figure.savefig(IMAGES / "time_of_a_step.png")


def training() -> None:
    """Draw the losses of 1,000 layers, inverted and with checkpointing."""
    record = read("deep_training")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained", dpi=120)
        axis = figure.subplots()
        for row in record["rows"]:
            color, style, width = LOSSES[row["strategy"]]
            label = row["strategy"] if row["seed"] == 0 else None
            axis.plot(row["losses"], style, color=color, lw=width, label=label)
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.legend(frameon=False)
        largest = record["settings"]["largest_difference"]
        axis.set_title(
            f"{record['settings']['layers']:,} layers, two seeds: strategies differ "
            f"by {largest:.0e} at most",
            loc="left",
        )
        figure.savefig(IMAGES / "deep_training.png")


def budget() -> None:
    """Draw the time of a step against its memory."""
    record = read("budget")
    state = record["settings"]["state"]
    measured = [row["measured"] / state for row in record["rows"]]
    predicted = [row["predicted"] / state for row in record["rows"]]
    times = [1e3 * row["seconds"] for row in record["rows"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained", dpi=120)
        axis = figure.subplots()
        axis.semilogx(measured, times, "o-", color="#0b6e4f", lw=2, label="measured")
        axis.plot(predicted, times, "x", color="#b3261e", label="predicted peak")
        axis.annotate(
            "nearly everything rebuilt", (measured[0], times[0]), (2, 9),
            textcoords="offset points",
        )  # fmt: skip
        axis.annotate(
            "everything stored", (measured[-1], times[-1]), (-12, -4),
            textcoords="offset points", ha="right",
        )  # fmt: skip
        axis.set_ylim(0, 1.15 * max(times))
        axis.set_xlabel("activations at the peak, in states")
        axis.set_ylabel("time of a step, ms")
        axis.legend(frameon=False)
        axis.set_title(f"{record['settings']['depth']} layers, by budget", loc="left")
        figure.savefig(IMAGES / "budget.png")


def scale() -> None:
    """Draw peak memory at the size of the paper's networks, on a GPU."""
    record = read("scale_cuda")
    rows = [row for row in record["rows"] if "contender" in row]
    planes = [row for row in rows if len(row["space"]) == 2]
    volumes = [row for row in rows if len(row["space"]) == 3]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=130)
        axes = figure.subplots(1, 2)
        draw_scale(axes[0], planes, record["settings"]["memory"])
        draw_scale(axes[1], volumes, record["settings"]["memory"])
        axes[0].set_ylabel("activations at the peak, GB")
        lines, labels = axes[0].get_legend_handles_labels()
        lines.append(Line2D([], [], color="#444444", linestyle=":"))
        labels.append("by extrapolation")
        place = {"loc": "outside lower center", "ncols": 5, "columnspacing": 1.2}
        figure.legend(lines, labels, frameon=False, fontsize=8.5, **place)
        figure.suptitle(
            f"Networks of the paper's size on one {record['machine']['device']}",
            x=0.01,
            ha="left",
        )
        figure.savefig(IMAGES / "memory_at_scale.png")


def draw_scale(axis: Axes, rows: list[dict[str, Any]], memory: int) -> None:
    """Draw the bytes of each contender, dotted where there are not so many."""
    space = " × ".join(map(str, rows[0]["space"]))
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == contender]
        needed = [(row["bytes"] or row["expected"]) / 1e9 for row in own]
        depths = [row["couplings"] for row in own]
        fits = sum(row["bytes"] is not None for row in own)
        color = COLORS[contender]
        axis.loglog(depths, needed, "o:", color=color, markerfacecolor="white")
        axis.plot(depths[:fits], needed[:fits], "o-", color=color, label=contender)
        axis.annotate(
            f"{needed[-1]:.3g}", (depths[-1], needed[-1]), (9, 0), color=color,
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    axis.axhline(memory / 1e9, color="#888888", lw=0.8)
    axis.text(rows[0]["couplings"], memory / 1e9, "memory of the GPU", va="bottom")
    axis.set_ylim(top=8 * memory / 1e9)
    ticks = sorted({row["couplings"] for row in rows})
    axis.set_xticks(ticks, [*map(str, ticks)])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_xlabel("couplings")
    axis.set_title(f"64 channels of {space}", loc="left")


if __name__ == "__main__":
    memory()
    time()
    scale()
    training()
    budget()
    drift()
    print(f"drawn in {IMAGES}")
