"""Reconstructions compared with targets: scores as text, JSON and a page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_example import metrics, transforms
from mri_example.data import files
from mri_example.data.checks import checked
from mri_example.data.dataset import coil_images
from mri_example.errors import InputError, reworded
from mri_example.metrics import METRICS, Scores, Summary, summarize
from mri_example.progress import shown
from mri_example.report import Slice, versions, write_page

DIGITS = {"nmse": 5, "psnr": 3, "ssim": 4}
EACH = 3  # worst slices, and best ones
CAPTION = "mean +- 2 sd over volumes [95 % interval of the mean, bootstrap]"


@dataclass(frozen=True, order=True)
class Condition:
    """What volumes are grouped by, for example `CORPD_FBK` and `4`, or `unknown`."""

    acquisition: str
    acceleration: str

    def __str__(self) -> str:
        known = self.acceleration != files.UNKNOWN
        return f"{self.acquisition}, {self.acceleration}{'x' if known else ''}"


@dataclass(frozen=True)
class Evaluation:
    """Scores by the name of the volume, summarized by condition."""

    volumes: Mapping[str, Scores]
    conditions: Mapping[str, Condition]
    failures: Mapping[str, str]  # why volumes that were to be skipped do not count

    @cached_property
    def summary(self) -> Summary:
        """The summary of all volumes."""
        return summarize(self.volumes.values())

    @cached_property
    def groups(self) -> dict[Condition, Summary]:
        """The summary of each condition."""
        members: dict[Condition, list[Scores]] = {}
        for name, scores in self.volumes.items():
            members.setdefault(self.conditions[name], []).append(scores)
        return {group: summarize(members[group]) for group in sorted(members)}

    def tables(self) -> tuple[list[list[str]], list[list[str]]]:
        """Return the scores of volumes and of groups as text, below their heads."""
        names = [metric.upper() for metric in METRICS]
        volumes = [
            [name, str(self.conditions[name]), *(_text(s, m) for m in METRICS)]
            for name, s in self.volumes.items()
        ]
        groups = [
            [str(group), str(s.count), *(_cell(s, m) for m in METRICS)]
            for group, s in [*self.groups.items(), ("all", self.summary)]
        ]
        return (
            [["volume", "condition", *names], *volumes],
            [["condition", "volumes", *names], *groups],
        )

    def __str__(self) -> str:
        volumes, groups = self.tables()
        lines = [_aligned(volumes), CAPTION, _aligned(groups)]
        if self.failures:
            lines.append(f"failed and not counted: {len(self.failures)}")
            lines += [f"  {name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write all numbers, and all that is not among them, as JSON."""
        drawn = {"level": metrics.LEVEL, "draws": metrics.DRAWS, "seed": metrics.SEED}
        scores = {
            name: asdict(scores) | asdict(self.conditions[name])
            for name, scores in self.volumes.items()
        }
        groups = [asdict(group) | asdict(s) for group, s in self.groups.items()]
        numbers = {"volumes": scores, **asdict(self.summary), "bootstrap": drawn}
        numbers |= {"groups": groups, "failures": dict(self.failures)}
        # null for what JSON has no number for, such as an infinite PSNR
        plain = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
        with files.whole_file(path) as partial:
            partial.write_text(f"{json.dumps(plain, indent=2)}\n")


def _text(scores: Scores | None, metric: str) -> str:
    return f"{getattr(scores, metric):.{DIGITS[metric]}f}"


def _cell(summary: Summary, metric: str) -> str:
    mean = _text(summary.mean, metric)
    spread, interval = summary.two_standard_deviations, summary.interval
    if interval is None:
        return f"{mean} (one volume)"
    parts = (spread, interval.low, interval.high)
    return "{} +- {} [{}, {}]".format(mean, *(_text(part, metric) for part in parts))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  "
        + "  ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def evaluate(
    targets: Path, reconstructions: Path, *, skip_failures: bool = False
) -> Evaluation:
    """Compare a folder of reconstructions with the targets, volume by volume.

    Every file of either folder counts, or is named as a failure. The acceleration is
    the one that the reconstruction, or else the target's file, says.

    Raises:
        InputError: If a volume has no partner or no target, occurs twice or cannot be
            compared, unless failures are skipped; or if nothing is left to count.
    """
    names, failures = _paired(targets, reconstructions)
    _refuse(failures, unless=skip_failures)
    conditions: dict[str, Condition] = {}

    def group(file: files.KSpaceFile) -> None:
        if file.target is None:
            file.target_volume()  # says so
        name, said = file.path.name, file.attributes
        with files.opened(reconstructions / name) as found:
            told = files.plain(
                found.attrs.get("acceleration", said.get("acceleration"))
            )
        conditions[name] = Condition(_shown(said.get("acquisition")), _shown(told))

    refused: dict[Path, str] = {}
    paths = [targets / name for name in names]
    usable = checked(paths, refused if skip_failures else None, group)
    volumes: dict[str, Scores] = {}
    for file in shown(usable, "evaluate", "volume"):
        name = file.path.name
        try:
            target = file.target_volume()
            estimate = files.read_reconstruction(reconstructions / name)
            with reworded(f"{name} cannot be evaluated: {{}}", InputError):
                volumes[name] = metrics.score(target, estimate)
        except InputError as error:
            refused[file.path] = str(error)
            _refuse({"": str(error)}, unless=skip_failures)
    failures |= {path.name: reason for path, reason in refused.items()}
    _refuse(failures, unless=volumes)
    return Evaluation(volumes, conditions, failures)


def _paired(targets: Path, reconstructions: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names in both folders, and what is wrong with the others."""
    wanted = [path.name for path in files.volume_paths(targets)]
    found: list[str] = []
    if reconstructions.is_dir() and any(reconstructions.iterdir()):
        found = [path.name for path in files.volume_paths(reconstructions)]
    missing = [name for name in wanted if name not in found]
    text = f"({len(missing)} missing of {len(wanted)}): reconstruct all volumes first"
    failures = {name: f"{reconstructions} lacks {name} {text}" for name in missing}
    text = "but there is a reconstruction of it: remove that, or add the target"
    for name in sorted({*found} - {*wanted}):
        failures[name] = f"{targets} has no {name}, {text}"
    for folder, names in ((targets, wanted), (reconstructions, found)):
        stems = Counter(Path(name).stem for name in names)
        text = "with another ending too, so that one might count twice: keep one"
        twins = [name for name in names if stems[Path(name).stem] > 1]
        failures |= {name: f"{folder} holds {name} {text}" for name in twins}
    return [name for name in wanted if name not in failures], failures


def _refuse(failures: Mapping[str, str], *, unless: Any) -> None:
    """Raise the first failure, if there is one, unless it is possible to go on."""
    if failures and not unless:
        more = f"; {len(failures)} volumes fail in all" if len(failures) > 1 else ""
        raise InputError(f"{next(iter(failures.values()))}{more}")


def _shown(attribute: Any) -> str:
    """Return an attribute as it is compared and shown, numbers without their type."""
    if attribute is None:
        return files.UNKNOWN
    known = isinstance(attribute, bytes)
    text = attribute.decode(errors="replace") if known else str(attribute)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def evaluation_page(
    evaluation: Evaluation, targets: Path, reconstructions: Path, path: Path
) -> Path:
    """Write the scores, the worst slices of the worst volume, and the best likewise."""
    volumes, groups = evaluation.tables()
    tables = {f"Scores: {CAPTION}": groups, "Volumes": volumes}
    ranked = sorted(evaluation.volumes, key=lambda n: evaluation.volumes[n].ssim)
    slices: dict[str, Slice] = {}  # of one volume none is shown twice
    for name, worst in (ranked[0], True), (ranked[-1], False):
        for one in _ranked(targets / name, reconstructions / name, worst=worst):
            slices.setdefault(one.title.partition(": ")[2], one)
    folders = {"targets": targets, "reconstructions": reconstructions}
    facts = {"Folders": folders, "Versions": versions()}
    count = len(evaluation.volumes)
    lead = f"{count} volume{'s' if count > 1 else ''} of {targets}, reconstructed."
    parts: dict[str, Any] = {
        "tables": tables,
        "facts": facts,
        "slices": [*slices.values()],
    }
    return write_page(path, "Evaluation", lead, **parts)


def _ranked(target: Path, reconstruction: Path, *, worst: bool) -> list[Slice]:
    """Return the slices of a volume with the lowest SSIM, or with the highest.

    They are shown as far as they are compared. Those of nothing have no scores.
    """
    file = files.KSpaceFile.inspect(target)
    made = files.read_reconstruction(reconstruction)
    truth, estimate = metrics.comparable(file.target_volume(), made)
    peaks = truth.max(axis=(1, 2))
    scores = {
        i: metrics.score(truth[[i]], estimate[[i]], maxval=peaks.max())
        for i in np.flatnonzero(peaks > 0).tolist()
    }
    ranked = sorted(scores, key=lambda i: scores[i].ssim, reverse=not worst)
    slices = []
    for i in ranked[:EACH]:
        title = f"{'worst' if worst else 'best'}: {file.path.name}, slice {i}"
        for metric, digits in (("nmse", 4), ("psnr", 2), ("ssim", 3)):
            title += f", {metric.upper()} {getattr(scores[i], metric):.{digits}f}"
        images = zero_filled_slice(file, reconstruction, i)
        slices.append(Slice(title, images | {"reconstruction": estimate[i]}, truth[i]))
    return slices


def zero_filled_slice(
    file: files.KSpaceFile, reconstruction: Path, index: int
) -> dict[str, NDArray[Any]]:
    """Return the zero-filled image, a square as wide as the target.

    There is one if the reconstruction says which columns it had.
    """
    columns: Any = file.mask
    if columns is None:
        with files.opened(reconstruction) as found:
            columns = found.attrs.get("columns")
    known = np.asarray(columns)  # another program may mean another thing
    if known.shape != file.shape[-1:] or known.dtype.kind not in "biuf":
        return {}
    sampled = torch.from_numpy(known.astype(np.float32))
    kspace = transforms.fftc(coil_images(file, index))
    image = transforms.root_sum_of_squares(transforms.ifftc(kspace * sampled), dim=0)
    _, width = file.target_size or file.crop
    cropped = transforms.center_crop(image, file.crop)
    return {"zero-filled": transforms.fitted(cropped, (width, width)).numpy()}
