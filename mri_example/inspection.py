"""A walk through a data root: what is there, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from mri_example.data.checks import check_header, check_place, check_values
from mri_example.data.files import KSpaceFile, volume_paths
from mri_example.errors import InputError

CHALLENGES = ("singlecoil", "multicoil")
SPLITS = ("train", "val", "test", "challenge")
PUBLISHED = {  # volumes and slices of the single-coil knee data
    "singlecoil_train": (973, 34742),
    "singlecoil_val": (199, 7135),
    "singlecoil_test": (108, 3903),
}


@dataclass
class FolderReport:
    """What one folder holds.

    Attributes:
        name: For example `singlecoil_train`.
        volumes: Number of files, defective ones included.
        slices: Number of slices in those that can be read.
        counts: What they are like, and how many are: sizes, coils, acquisitions, ...
        defects: What is wrong, for each thing that is.
    """

    name: str
    volumes: int = 0
    slices: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)

    def add(self, file: KSpaceFile) -> None:
        """Count a file that can be read."""
        self.slices += file.slices
        kinds = {
            "rows x columns": f"{file.shape[-2]} x {file.shape[-1]}",
            "coils": str(file.coils),
            "acquisition": str(file.attributes.get("acquisition", "not named")),
            "acquisition/scanner": file.scan,
            "target": file.target or "none",
            "mask": "none" if file.mask is None else "of its own",
            "header": "none" if file.assumed else "ISMRMRD",
        }
        for kind, value in kinds.items():
            self.counts.setdefault(kind, Counter())[value] += 1

    @property
    def published(self) -> str:
        """How it compares with the published data set, or "" if it has no such part."""
        if self.name not in PUBLISHED:
            return ""
        volumes, slices = PUBLISHED[self.name]
        if (self.volumes, self.slices) == (volumes, slices):
            return ", as published"
        return f"; the published knee data have {volumes} volumes, {slices} slices"

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.volumes} volumes, {self.slices} slices{self.published}"
        ]
        for kind, counter in self.counts.items():
            found = ", ".join(f"{value} ({n})" for value, n in counter.most_common())
            lines.append(f"  {kind}: {found}")
        lines.append(f"  defects: {len(self.defects) or 'none'}")
        lines.extend(f"    {defect}" for defect in self.defects)
        return "\n".join(lines)


def inspect_root(
    root: Path, *, quick: bool = False, progress: bool = True
) -> list[FolderReport]:
    """Look through all folders of a data root.

    Args:
        root: It holds some of `singlecoil_train`, ..., `multicoil_challenge`.
        quick: Look at shapes, headers and attributes only, and read no k-space.
        progress: Show a progress bar.

    Returns:
        A report for each folder that is there.

    Raises:
        InputError: If none is.
    """
    names = [f"{challenge}_{split}" for challenge in CHALLENGES for split in SPLITS]
    folders = [root / name for name in names if (root / name).is_dir()]
    if not folders:
        raise InputError(f"{root} has none of {', '.join(names)}: check the path")
    files = {folder: _files(folder) for folder in folders}
    named = _by_name(files)
    total = sum(map(len, files.values()))
    with tqdm(total=total, desc="check", unit="volume", disable=not progress) as bar:
        reports = []
        for folder, paths in files.items():
            report = FolderReport(folder.name, volumes=len(paths))
            if not paths:
                report.defects.append(f"{folder} holds no .h5 files: remove it")
            for path in paths:
                _examine(path, report, quick)
                report.defects += _twins(path, named[_name(path)])
                bar.update()
            reports.append(report)
    return reports


def _files(folder: Path) -> list[Path]:
    try:
        return volume_paths(folder)
    except InputError:
        return []


def _examine(path: Path, report: FolderReport, quick: bool) -> None:
    try:
        file = KSpaceFile.inspect(path)
        report.add(file)
        check_place(file, report.name)
    except InputError as error:
        report.defects.append(str(error))
        return
    for check in (check_header,) if quick else (check_header, check_values):
        try:
            check(file)
        except InputError as error:
            report.defects.append(str(error))


def _name(path: Path) -> tuple[str, str]:
    """Return what should be unique: the challenge, and the name of the volume."""
    return path.parent.name.split("_")[0], path.stem


def _by_name(files: dict[Path, list[Path]]) -> dict[tuple[str, str], list[Path]]:
    named: dict[tuple[str, str], list[Path]] = {}
    for path in chain.from_iterable(files.values()):
        named.setdefault(_name(path), []).append(path)
    return named


def _twins(path: Path, named: list[Path]) -> list[str]:
    others = ", ".join(str(other) for other in named if other != path)
    return [f"{path} has the name of {others}: rename one"] if others else []
