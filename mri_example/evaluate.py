"""Reconstructions compared with targets: a table of scores, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mri_example.data.checks import checked
from mri_example.data.files import (
    KSpaceFile,
    opened,
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
    Interval,
    Scores,
    Summary,
    bootstrap,
    score,
    summarize,
)

UNKNOWN = "unknown"


@dataclass(frozen=True, order=True)
class Condition:
    """What volumes are grouped by.

    Attributes:
        acquisition: For example `CORPD_FBK`, or `unknown`.
        acceleration: For example `4`, or `unknown`.

    Examples:
        >>> print(Condition.of({"acquisition": "AXT2"}, {"acceleration": 4.0}))
        AXT2, 4x
        >>> print(Condition.of({}, {}))
        unknown, unknown
    """

    acquisition: str
    acceleration: str

    @classmethod
    def of(
        cls, target: Mapping[str, Any], reconstruction: Mapping[str, Any]
    ) -> Condition:
        """Read the condition from the attributes of two files.

        The acceleration is that of the reconstruction, or where it does not say it, as
        those of others may not, that of the file with the target.
        """
        told = reconstruction.get("acceleration", target.get("acceleration"))
        return cls(attribute_text(target.get("acquisition")), attribute_text(told))

    def __str__(self) -> str:
        known = self.acceleration != UNKNOWN
        return f"{self.acquisition}, {self.acceleration}{'x' if known else ''}"


def attribute_text(value: Any) -> str:
    """Return an attribute as it is compared and shown, numbers without their type.

    Examples:
        >>> attribute_text(4.0), attribute_text(b"8"), attribute_text("AXT2")
        ('4', '8', 'AXT2')
        >>> attribute_text(None)
        'unknown'
    """
    if value is None:
        return UNKNOWN
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


@dataclass(frozen=True)
class Group:
    """The volumes of one condition, or all.

    Attributes:
        condition: Of the volumes; `None` for all.
        summary: Mean, two standard deviations, and the number of volumes.
        interval: Of the mean; `None` of a single volume.
    """

    condition: Condition | None
    summary: Summary
    interval: Interval | None


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
    failures: Mapping[str, str] = field(default_factory=dict)
    filtered: tuple[str, ...] = ()

    @cached_property
    def summary(self) -> Summary:
        """Mean over all volumes and two standard deviations."""
        return summarize(self.volumes.values())

    @cached_property
    def groups(self) -> list[Group]:
        """The volumes of each condition, and last all of them."""
        groups = [self._group(c) for c in sorted(set(self.conditions.values()))]
        return [*groups, self._group(None)]

    def __str__(self) -> str:
        return table(self)

    def _group(self, condition: Condition | None) -> Group:
        scores = [
            score
            for name, score in self.volumes.items()
            if condition in (None, self.conditions[name])
        ]
        return Group(condition, summarize(scores), bootstrap(scores))


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


class Failures(dict[str, str]):
    """Why volumes cannot be evaluated, by their names.

    Args:
        found: Those that are known.
        skip: Go on without them.

    Raises:
        InputError: At the first of them, unless they are to be skipped.

    Examples:
        >>> failures = Failures({}, skip=True)
        >>> with failures.noted("a.h5"):
        ...     raise InputError("it is damaged")
        >>> failures
        {'a.h5': 'it is damaged'}
    """

    def __init__(self, found: Mapping[str, str], *, skip: bool) -> None:
        super().__init__(found)
        self.skip = skip
        if not skip:
            self.refuse()

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Note the error that ends the block, or pass it on."""
        try:
            yield
        except InputError as error:
            self[name] = str(error)
            if not self.skip:
                raise

    def refuse(self) -> None:
        """Raise the first failure, if there is one."""
        for reason in self.values():
            more = f"; {len(self)} volumes fail in all" if len(self) > 1 else ""
            raise InputError(f"{reason}{more}")


def paired(targets: Path, reconstructions: Path) -> tuple[list[str], dict[str, str]]:
    """Match the files of two folders by their names.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions.

    Returns:
        The names in both, and what is wrong with the others: targets without a
        reconstruction, reconstructions without a target, and files of one name that
        differ in their endings only, so that a volume might count twice.

    Raises:
        InputError: If there are no targets.
    """
    wanted = [path.name for path in volume_paths(targets)]
    found: list[str] = []
    if reconstructions.is_dir() and any(reconstructions.iterdir()):
        found = [path.name for path in volume_paths(reconstructions)]
    failures = {
        **_missing(reconstructions, wanted, found),
        **_unexpected(targets, wanted, found),
        **_duplicates(targets, wanted),
        **_duplicates(reconstructions, found),
    }
    return [name for name in wanted if name not in failures], failures


def _missing(folder: Path, wanted: list[str], found: list[str]) -> dict[str, str]:
    missing = [name for name in wanted if name not in found]
    count = f"{len(missing)} missing of {len(wanted)}"
    return {
        name: f"{folder} lacks {name} ({count}): reconstruct all volumes first"
        for name in missing
    }


def _unexpected(folder: Path, wanted: list[str], found: list[str]) -> dict[str, str]:
    return {
        name: f"{folder} has no {name}, but there is a reconstruction of it: remove "
        f"that, or add the target"
        for name in found
        if name not in wanted
    }


def _duplicates(folder: Path, names: list[str]) -> dict[str, str]:
    stems = Counter(Path(name).stem for name in names)
    return {
        name: f"{folder} holds {name} with another ending too, so that one volume "
        f"might count twice: keep one of them"
        for name in names
        if stems[Path(name).stem] > 1
    }


def evaluate(
    targets: Path,
    reconstructions: Path,
    acquisition: str | None = None,
    acceleration: float | None = None,
    *,
    skip_failures: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Compare a folder of reconstructions with the targets, volume by volume.

    Every file of either folder counts, or is named as a failure or as filtered.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions with the same names.
        acquisition: Count only the volumes of this acquisition.
        acceleration: Count only the volumes of this acceleration, as their
            reconstruction, or else the file with the target, says it.
        skip_failures: Go on without the volumes that cannot be compared, and list them.
        progress: Show a progress bar.

    Returns:
        The scores.

    Raises:
        InputError: If a volume has no partner or no target, occurs twice or cannot be
            compared, unless failures are skipped; or if nothing is left to count.
    """
    names, unpaired = paired(targets, reconstructions)
    failures = Failures(unpaired, skip=skip_failures)
    conditions: dict[str, Condition] = {}
    for name in names:
        with failures.noted(name):
            conditions[name] = _condition(targets / name, reconstructions / name)
    if not conditions:
        failures.refuse()
    wanted = _wanted(conditions, acquisition, acceleration)
    volumes: dict[str, Scores] = {}
    bar = tqdm(wanted, desc="evaluate", unit="volume", disable=not progress)
    with bar as names:
        for name in names:
            with failures.noted(name):
                volumes[name] = _score(targets / name, reconstructions / name)
    if not volumes:
        failures.refuse()
    return Evaluation(
        volumes,
        {name: conditions[name] for name in volumes},
        failures,
        tuple(name for name in conditions if name not in wanted),
    )


def _condition(target: Path, reconstruction: Path) -> Condition:
    (file,) = checked([target])
    if file.target is None:
        file.target_volume()  # says so
    with opened(reconstruction) as found:
        return Condition.of(file.attributes, dict(found.attrs))


def _score(target: Path, reconstruction: Path) -> Scores:
    volume = KSpaceFile.inspect(target).target_volume()
    estimate = read_reconstruction(reconstruction)
    try:
        return score(volume, estimate)
    except InputError as error:
        raise InputError(f"{target.name} cannot be evaluated: {error}") from error


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
