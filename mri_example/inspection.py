"""A walk through a data root: what is there, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mri_example.data.checks import Finding, findings, summary
from mri_example.data.files import KSpaceFile, volume_paths
from mri_example.errors import InputError
from mri_example.progress import shown

CHALLENGES = ("singlecoil", "multicoil")
SPLITS = ("train", "val", "test", "challenge")
PUBLISHED = {  # volumes and slices of the single-coil knee data
    "singlecoil_train": (973, 34742),
    "singlecoil_val": (199, 7135),
    "singlecoil_test": (108, 3903),
}
EQUAL = 1e-3  # relative, of the attributes to the target


@dataclass
class FolderReport:
    """What one folder holds, such as `singlecoil_train`.

    Volumes are all files, slices those of files that can be read, counts what they are
    like and how many are; defects are wrong, doubts may be.
    """

    name: str
    volumes: int = 0
    slices: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    doubts: list[tuple[KSpaceFile, Finding]] = field(default_factory=list)

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
            "header": "ISMRMRD" if file.header else "none",
        }
        for kind, value in kinds.items():
            self.counts.setdefault(kind, Counter())[value] += 1

    def __str__(self) -> str:
        head = f"{self.name}: {self.volumes} volumes, {self.slices} slices"
        volumes, slices = known = PUBLISHED.get(self.name, (0, 0))
        if known == (self.volumes, self.slices):
            head += ", as published"
        elif volumes:
            head += f"; the published knee data have {volumes} volumes, {slices} slices"
        lines = [head]
        for kind, counter in self.counts.items():
            found = ", ".join(f"{value} ({n})" for value, n in counter.most_common())
            lines.append(f"  {kind}: {found}")
        lines.append(f"  defects: {len(self.defects) or 'none'}")
        lines.extend(f"    {defect}" for defect in self.defects)
        lines.extend(f"  doubt: {doubt}" for doubt in summary(self.doubts))
        return "\n".join(lines)


def inspect_root(root: Path, *, quick: bool = False) -> list[FolderReport]:
    """Look through all folders of a data root, and return a report for each.

    It holds some of `singlecoil_train`, ..., `multicoil_challenge`. One slice of each
    file is read if it is to be quick, else all.

    Raises:
        InputError: If there is no such folder.
    """
    names = [f"{challenge}_{split}" for challenge in CHALLENGES for split in SPLITS]
    folders = [root / name for name in names if (root / name).is_dir()]
    if not folders:
        raise InputError(f"{root} has none of {', '.join(names)}: check the path")
    reports = [FolderReport(folder.name) for folder in folders]
    files: dict[Path, FolderReport] = {}
    for folder, report in zip(folders, reports, strict=True):
        try:
            files |= dict.fromkeys(volume_paths(folder), report)
        except InputError as error:
            report.defects.append(str(error))
    for path in shown(list(files), "check", "volume"):
        _examine(path, files[path], quick)
    for path, defect in _twins(files):
        files[path].defects.append(defect)
    return reports


def _twins(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Find the files of a challenge with the name of another volume."""
    named: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        named.setdefault((path.parent.name.split("_")[0], path.stem), []).append(path)
    for paths in named.values():
        for path in paths:
            others = ", ".join(str(other) for other in paths if other != path)
            if others:
                yield path, f"{path} has the name of {others}: rename one"


def _examine(path: Path, report: FolderReport, quick: bool) -> None:
    report.volumes += 1
    try:
        file = KSpaceFile.inspect(path)
        report.add(file)
    except InputError as error:
        report.defects.append(str(error))
        return
    found = [*_of_split(file), *findings(file, None if quick else range(file.slices))]
    if not quick and file.target is not None and all(f.doubt for f in found):
        found += _of_attributes(file)
    report.defects += [f"{path}: {f.text}" for f in found if not f.doubt]
    report.doubts += [(file, f) for f in found if f.doubt]


def _of_split(file: KSpaceFile) -> Iterator[Finding]:
    """Say what keeps `fit` from using a file of its folder."""
    folder = file.path.parent.name
    split = folder.split("_")[-1]
    if split not in ("train", "val"):
        return
    if file.mask is not None:
        yield Finding(
            "split",
            f"it brings a mask, so its k-space is undersampled and no model can learn "
            f"from it: move it from {folder}",
        )
    if split == "val" and file.target_size is None:
        yield Finding(
            "split",
            f"it has no target volume, so nothing can be validated on it: move it from "
            f"{folder}, or add its target",
        )
    elif split == "val" and file.target_size and file.target_size[0] < file.crop[1]:
        yield Finding(
            "split",
            f"its target has fewer rows than columns, {file.target_size}, but a square "
            f"as wide as it is compared: exchange the axes, or crop the columns",
        )


def _of_attributes(file: KSpaceFile) -> Iterator[Finding]:
    """Compare the attributes `max` and `norm` with the target of all slices."""
    try:
        target = file.target_volume()
        values = {"max": target.max(), "norm": np.linalg.norm(target)}
        for name, value in values.items():
            said = file.number(name)
            if said is not None and not np.isclose(said, value, rtol=EQUAL, atol=0):
                yield Finding(
                    "attribute",
                    f"the attribute {name!r} is {said:.6g}, but that of {file.target} "
                    f"is {value:.6g}: repair the attribute",
                )
    except InputError as error:
        yield Finding("values", str(error).removeprefix(f"{file.path}: "))
