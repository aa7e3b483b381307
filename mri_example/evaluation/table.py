"""An evaluation as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mri_example.metrics import METRICS, Interval, Summary

if TYPE_CHECKING:
    from mri_example.evaluation.result import Evaluation, Group

DIGITS = {"nmse": 5, "psnr": 3, "ssim": 4}
CAPTION = "mean +- 2 sd over volumes [95 % interval of the mean, bootstrap]"
NAMES = [metric.upper() for metric in METRICS]


def table(evaluation: Evaluation) -> str:
    """Return all volumes, the groups, and what is in neither."""
    volumes = [
        [
            name,
            str(evaluation.conditions[name]),
            *(f"{getattr(scores, m):.{DIGITS[m]}f}" for m in METRICS),
        ]
        for name, scores in evaluation.volumes.items()
    ]
    parts = [
        _aligned([["volume", "condition", *NAMES], *volumes]),
        CAPTION,
        _aligned([["condition", "volumes", *NAMES], *map(_row, evaluation.groups)]),
        *_left_out(evaluation),
    ]
    return "\n".join(parts)


def _row(group: Group) -> list[str]:
    cells = (_cell(group.summary, group.interval, metric) for metric in METRICS)
    return [str(group.condition or "all"), str(group.summary.volumes), *cells]


def _cell(summary: Summary, interval: Interval | None, metric: str) -> str:
    if interval is None:
        return f"{getattr(summary.mean, metric):.{DIGITS[metric]}f} (one volume)"
    sides = (summary.mean, summary.spread, interval.low, interval.high)
    mean, spread, low, high = (
        f"{getattr(s, metric):.{DIGITS[metric]}f}" for s in sides
    )
    return f"{mean} +- {spread} [{low}, {high}]"


def _left_out(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.filtered:
        yield (
            f"of other conditions and not counted: {len(evaluation.filtered)} "
            f"({', '.join(evaluation.filtered)})"
        )
    if evaluation.failures:
        yield f"failed and not counted: {len(evaluation.failures)}"
        yield from (f"  {name}: {why}" for name, why in evaluation.failures.items())


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  "
        + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
