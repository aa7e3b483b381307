"""The table of a comparison: means over seeds, and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {"nmse": "{:.4f}", "psnr": "{:.2f}", "ssim": "{:.4f}"}
HEAD = (
    *("coils", "acceleration", "method", "parameters", "steps", "peak MB", "seeds"),
    *(metric.upper() for metric in METRICS),
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a line of text for each method, coils and acceleration, below the head."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = row["coils"], row["acceleration"], row["method"]
        groups.setdefault(key, []).append(row)
    lines = [[*HEAD]]
    for (coils, acceleration, method), group in groups.items():
        first = group[0]
        steps = sorted({row["steps"] for row in group})
        lines.append(
            [
                *(str(coils), f"{acceleration}x", method, f"{first['parameters']:,}"),
                "-".join(f"{n:,}" for n in dict.fromkeys((steps[0], steps[-1]))),
                *(f"{first['peak'] / 1e6:.0f}", str(len(group))),
                *(_cell([row[m] for row in group], m) for m in METRICS),
            ]
        )
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of text as a table of a page of the documentation."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *body])


def _cell(values: Sequence[float], metric: str) -> str:
    """Return the mean, with more than one seed beside the standard deviation."""
    shown = METRICS[metric]
    mean = shown.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {shown.format(statistics.stdev(values))}"
