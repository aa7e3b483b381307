"""An evaluation as a file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mri_example.data.writing import whole_file
from mri_example.errors import InputError
from mri_example.evaluation.result import Evaluation, Group
from mri_example.metrics import METRICS, Scores
from mri_example.metrics.bootstrap import DRAWS, LEVEL, SEED

ENDINGS = ("", "_two_sd", "_low", "_high")
COLUMNS = (
    *("kind", "name", "acquisition", "acceleration", "volumes"),
    *(metric + ending for metric in METRICS for ending in ENDINGS),
    "reason",
)


def write(evaluation: Evaluation, path: Path) -> None:
    """Write all numbers, and all that is not among them.

    Args:
        evaluation: The scores.
        path: Ends in .json, or in .csv for one table of all: its first column says of a
            row whether it is a `volume`, a `group`, or a volume that `failed` or was
            `filtered`.

    Raises:
        InputError: If the path ends otherwise, or cannot be written.
    """
    check_ending(path)
    with whole_file(path) as partial:
        partial.write_text(FORMATS[path.suffix](evaluation))


def check_ending(path: Path) -> None:
    """Make sure that it is known how to write a file.

    Raises:
        InputError: If its ending is another.
    """
    if path.suffix not in FORMATS:
        raise InputError(
            f"output is {path}, but must end in {' or '.join(FORMATS)}: rename it"
        )


def _json(evaluation: Evaluation) -> str:
    *groups, everything = (_group(group) for group in evaluation.groups)
    numbers = {
        "volumes": {
            name: asdict(scores) | asdict(evaluation.conditions[name])
            for name, scores in evaluation.volumes.items()
        },
        **everything,
        "bootstrap": {"level": LEVEL, "draws": DRAWS, "seed": SEED},
        "groups": groups,
        "failures": dict(evaluation.failures),
        "filtered": list(evaluation.filtered),
    }
    return json.dumps(_finite(numbers), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Put null for what JSON has no number for, such as an infinite PSNR."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _group(group: Group) -> dict[str, Any]:
    known = group.interval  # one volume tells nothing of others
    return {
        **(asdict(group.condition) if group.condition else {}),
        "count": group.summary.volumes,
        "mean": asdict(group.summary.mean),
        "two_standard_deviations": asdict(group.summary.spread) if known else None,
        "interval": asdict(known) if known else None,
    }


def _csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(evaluation))
    return text.getvalue()


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for name, scores in evaluation.volumes.items():
        condition = asdict(evaluation.conditions[name])
        yield {"kind": "volume", "name": name, **condition, **asdict(scores)}
    for group in evaluation.groups:
        yield {"kind": "group", **_cells(group)}
    for name in evaluation.filtered:
        yield {"kind": "filtered", "name": name}
    for name, reason in evaluation.failures.items():
        yield {"kind": "failed", "name": name, "reason": reason}


def _cells(group: Group) -> dict[str, Any]:
    summary, interval = group.summary, group.interval
    others: tuple[Scores | None, ...] = (None, None, None)
    if interval:
        others = (summary.spread, interval.low, interval.high)
    return {
        "name": "" if group.condition else "all",
        **(asdict(group.condition) if group.condition else {}),
        "volumes": summary.volumes,
        **{
            metric + ending: getattr(part, metric, "")
            for ending, part in zip(ENDINGS, (summary.mean, *others), strict=True)
            for metric in METRICS
        },
    }


FORMATS: dict[str, Callable[[Evaluation], str]] = {".json": _json, ".csv": _csv}
