"""Reconstructions compared with targets: a table of scores, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mri_example.data.checks import OnFailure, checked
from mri_example.data.files import (
    UNKNOWN,
    KSpaceFile,
    opened,
    plain,
    read_reconstruction,
    volume_paths,
    whole_file,
)
from mri_example.errors import InputError
from mri_example.metrics import (
    DRAWS,
    LEVEL,
    METRICS,
    SEED,
    Scores,
    Summary,
    score,
    summarize,
)
from mri_example.progress import shown

DIGITS = {"nmse": 5, "psnr": 3, "ssim": 4}
CAPTION = "mean +- 2 sd over volumes [95 % interval of the mean, bootstrap]"
PARTS = {"": "mean", "_two_sd": "spread", "_low": "low", "_high": "high"}
COLUMNS = (
    *("kind", "name", "acquisition", "acceleration", "volumes"),
    *(metric + ending for metric in METRICS for ending in PARTS),
    "reason",
)


@dataclass(frozen=True, order=True)
class Condition:
    """What volumes are grouped by, for example `CORPD_FBK` and `4`, or `unknown`.

    Examples:
        >>> print(Condition("AXT2", "4"))
        AXT2, 4x
    """

    acquisition: str
    acceleration: str

    def __str__(self) -> str:
        known = self.acceleration != UNKNOWN
        return f"{self.acquisition}, {self.acceleration}{'x' if known else ''}"


def attribute_text(value: Any) -> str:
    """Return an attribute as it is compared and shown, numbers without their type.

    Examples:
        >>> attribute_text(4.0), attribute_text(b"8"), attribute_text(None)
        ('4', '8', 'unknown')
    """
    if value is None:
        return UNKNOWN
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


@dataclass(frozen=True)
class Evaluation:
    """Scores by the name of the volume, summarized by condition.

    Attributes:
        volumes: Scores of each volume.
        conditions: Acquisition and acceleration of each of them.
        failures: Why volumes do not count that were to be skipped if they fail.
        filtered: Names of volumes of conditions that were not asked for.
    """

    volumes: Mapping[str, Scores]
    conditions: Mapping[str, Condition]
    failures: Mapping[str, str]
    filtered: tuple[str, ...]

    @cached_property
    def summary(self) -> Summary:
        """The summary of all volumes."""
        return summarize(self.volumes.values())

    @cached_property
    def groups(self) -> list[tuple[Condition | None, Summary]]:
        """The summary of each condition, and last that of all volumes."""
        groups: list[tuple[Condition | None, Summary]] = []
        for condition in sorted(set(self.conditions.values())):
            names = [n for n in self.volumes if self.conditions[n] == condition]
            groups.append((condition, summarize(self.volumes[n] for n in names)))
        return [*groups, (None, self.summary)]

    def tables(self) -> tuple[list[list[str]], list[list[str]]]:
        """Return the scores of volumes and of groups as text, below their heads."""
        names = [metric.upper() for metric in METRICS]
        volumes = [
            [name, str(self.conditions[name]), *(_text(s, m) for m in METRICS)]
            for name, s in self.volumes.items()
        ]
        groups = [
            [str(c or "all"), str(s.volumes), *(_cell(s, m) for m in METRICS)]
            for c, s in self.groups
        ]
        return (
            [["volume", "condition", *names], *volumes],
            [["condition", "volumes", *names], *groups],
        )

    def __str__(self) -> str:
        volumes, groups = self.tables()
        lines = [_aligned(volumes), CAPTION, _aligned(groups)]
        if self.filtered:
            text = f"{len(self.filtered)} ({', '.join(self.filtered)})"
            lines.append(f"of other conditions and not counted: {text}")
        if self.failures:
            lines.append(f"failed and not counted: {len(self.failures)}")
            lines += [f"  {name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)


def _text(scores: Scores | None, metric: str) -> str:
    return f"{getattr(scores, metric):.{DIGITS[metric]}f}"


def _cell(summary: Summary, metric: str) -> str:
    if summary.spread is None:
        return f"{_text(summary.mean, metric)} (one volume)"
    mean, spread, low, high = (
        _text(getattr(summary, part), metric) for part in PARTS.values()
    )
    return f"{mean} +- {spread} [{low}, {high}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  "
        + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _paired(targets: Path, reconstructions: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names in both folders, and what is wrong with the others."""
    wanted = [path.name for path in volume_paths(targets)]
    found: list[str] = []
    if reconstructions.is_dir() and any(reconstructions.iterdir()):
        found = [path.name for path in volume_paths(reconstructions)]
    missing = [name for name in wanted if name not in found]
    count = f"{len(missing)} missing of {len(wanted)}"
    failures = {
        name: f"{reconstructions} lacks {name} ({count}): reconstruct all volumes first"
        for name in missing
    } | {
        name: f"{targets} has no {name}, but there is a reconstruction of it: remove "
        f"that, or add the target"
        for name in found
        if name not in wanted
    }
    for folder, names in ((targets, wanted), (reconstructions, found)):
        stems = Counter(Path(name).stem for name in names)
        failures |= {
            name: f"{folder} holds {name} with another ending too, so that one volume "
            f"might count twice: keep one of them"
            for name in names
            if stems[Path(name).stem] > 1
        }
    return [name for name in wanted if name not in failures], failures


def evaluate(
    targets: Path,
    reconstructions: Path,
    acquisition: str | None = None,
    acceleration: float | None = None,
    *,
    skip_failures: bool = False,
) -> Evaluation:
    """Compare a folder of reconstructions with the targets, volume by volume.

    Every file of either folder counts, or is named as a failure or as filtered. The
    acceleration is the one that the reconstruction, or else the target's file, says.

    Raises:
        InputError: If a volume has no partner or no target, occurs twice or cannot be
            compared, unless failures are skipped; or if nothing is left to count.
    """
    names, failures = _paired(targets, reconstructions)
    _refuse(failures, unless=skip_failures)

    def failed(path: Path, error: InputError) -> None:
        failures[path.name] = str(error)
        if not skip_failures:
            raise error

    conditions: dict[str, Condition] = {}

    def group(file: KSpaceFile) -> None:
        name = file.path.name
        conditions[name] = _condition(file, reconstructions / name)

    files = checked([targets / name for name in names], failed, group)
    _refuse(failures, unless=files)
    wanted = _wanted(conditions, acquisition, acceleration)
    counted = [file for file in files if file.path.name in wanted]
    volumes = _scores(counted, reconstructions, failed)
    _refuse(failures, unless=volumes)
    filtered = tuple(name for name in conditions if name not in wanted)
    return Evaluation(volumes, {n: conditions[n] for n in volumes}, failures, filtered)


def _refuse(failures: Mapping[str, str], *, unless: Any) -> None:
    """Raise the first failure, if there is one, unless it is possible to go on."""
    for reason in () if unless else failures.values():
        more = f"; {len(failures)} volumes fail in all" if len(failures) > 1 else ""
        raise InputError(f"{reason}{more}")


def _condition(file: KSpaceFile, reconstruction: Path) -> Condition:
    if file.target is None:
        file.target_volume()  # says so
    with opened(reconstruction) as found:
        told = found.attrs.get("acceleration", file.attributes.get("acceleration"))
    acquisition = file.attributes.get("acquisition")
    return Condition(attribute_text(acquisition), attribute_text(plain(told)))


def _scores(
    files: Sequence[KSpaceFile], reconstructions: Path, failed: OnFailure
) -> dict[str, Scores]:
    scores: dict[str, Scores] = {}
    for file in shown(files, "evaluate", "volume"):
        name = file.path.name
        try:
            both = file.target_volume(), read_reconstruction(reconstructions / name)
            scores[name] = _score(name, *both)
        except InputError as error:
            failed(file.path, error)
    return scores


def _score(name: str, target: Any, estimate: Any) -> Scores:
    try:
        return score(target, estimate)
    except InputError as error:
        raise InputError(f"{name} cannot be evaluated: {error}") from error


def _wanted(
    conditions: Mapping[str, Condition],
    acquisition: str | None,
    acceleration: float | None,
) -> list[str]:
    """Return the names of the volumes that were asked for."""
    asked = {"acquisition": acquisition, "acceleration": acceleration}
    names = list(conditions)
    for attribute, condition in asked.items():
        value = None if condition is None else attribute_text(condition)
        known = {name: getattr(conditions[name], attribute) for name in names}
        if value is not None and value not in known.values():
            raise InputError(
                f"{attribute} is {value!r}, but the files have "
                f"{', '.join(sorted(set(known.values()))) or 'none'}: name one of "
                f"these, or leave it out"
            )
        names = [name for name in names if value in (None, known[name])]
    return names


def write(evaluation: Evaluation, path: Path) -> None:
    """Write all numbers, and all that is not among them, as .json or .csv.

    The first column of a CSV says of a row whether it is a `volume`, a `group`, or a
    volume that `failed` or was `filtered`.
    """
    check_ending(path)
    with whole_file(path) as partial:
        partial.write_text(FORMATS[path.suffix](evaluation))


def check_ending(path: Path) -> None:
    """Make sure that it is known how to write a file."""
    if path.suffix not in FORMATS:
        raise InputError(
            f"output is {path}, but must end in {' or '.join(FORMATS)}: rename it"
        )


def _json(evaluation: Evaluation) -> str:
    *groups, everything = (_group(*group) for group in evaluation.groups)
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


def _group(condition: Condition | None, summary: Summary) -> dict[str, Any]:
    numbers = asdict(summary)
    several = summary.volumes > 1
    return {
        **(asdict(condition) if condition else {}),
        "count": summary.volumes,
        "mean": numbers["mean"],
        "two_standard_deviations": numbers["spread"],
        "interval": {n: numbers[n] for n in ("low", "high")} if several else None,
    }


def _csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, scores in evaluation.volumes.items():
        condition = asdict(evaluation.conditions[name])
        writer.writerow({"kind": "volume", "name": name} | condition | asdict(scores))
    for group, summary in evaluation.groups:
        row = {"kind": "group", "volumes": summary.volumes}
        row |= asdict(group) if group else {"name": "all"}
        for ending, part in PARTS.items():
            row |= {m + ending: getattr(getattr(summary, part), m, "") for m in METRICS}
        writer.writerow(row)
    for name in evaluation.filtered:
        writer.writerow({"kind": "filtered", "name": name})
    for name, reason in evaluation.failures.items():
        writer.writerow({"kind": "failed", "name": name, "reason": reason})
    return text.getvalue()


FORMATS: dict[str, Callable[[Evaluation], str]] = {".json": _json, ".csv": _csv}
