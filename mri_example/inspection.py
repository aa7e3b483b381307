"""A walk through a data root: what is there, and what is wrong with it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mri_example.data.checks import Finding, findings, summary
from mri_example.data.files import KSpaceFile, volume_paths
from mri_example.errors import InputError, require
from mri_example.progress import shown

SPLITS = ("train", "val", "test", "challenge")
NAMES = [f"{coils}coil_{split}" for coils in ("single", "multi") for split in SPLITS]
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
            "acquisition/scanner": file.scan,
            "target": file.target or "none",
            "mask": "none" if file.mask is None else "of its own",
            "header": "ISMRMRD" if file.header else "none",
        }
        for kind, value in kinds.items():
            self.counts.setdefault(kind, Counter())[value] += 1

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.volumes} volumes, {self.slices} slices"]
        for kind, counter in self.counts.items():
            found = ", ".join(f"{value} ({n})" for value, n in counter.most_common())
            lines.append(f"  {kind}: {found}")
        lines.append(f"  defects: {len(self.defects) or 'none'}")
        lines.extend(f"    {defect}" for defect in self.defects)
        lines.extend(f"  doubt: {doubt}" for doubt in summary(self.doubts))
        return "\n".join(lines)


def inspect_root(root: Path, *, quick: bool = False) -> list[FolderReport]:
    """Look through all folders of a data root, and return a report for each.

    It holds some of `singlecoil_train`, ..., `multicoil_challenge`, or of other names
    such as `multicoil_test_v2`. One slice of each file is read if it is to be quick,
    else all.

    Raises:
        InputError: If there is no such folder.
    """
    others = {path.name for path in root.glob("*coil_*")} - {*NAMES}
    names = [name for name in (*NAMES, *sorted(others)) if (root / name).is_dir()]
    require(names, f"{root} has none of {', '.join(NAMES)}: check the path")
    reports = [FolderReport(name) for name in names]
    files: dict[Path, FolderReport] = {}
    for report in reports:
        try:
            files |= dict.fromkeys(volume_paths(root / report.name), report)
        except InputError as error:
            report.defects.append(str(error))
    for path in shown(list(files), "check", "volume"):
        _examine(path, files[path], quick)
    for path, defect in _twins(files):
        files[path].defects.append(defect)
    return reports


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
    folder, size = file.folder, file.target_size
    if file.mask is not None and folder.endswith(("_train", "_val")):
        text = "it brings a mask, so no model can learn from its undersampled k-space: "
        yield Finding("mask in training", f"{text}move it from {folder}")
    if folder.endswith("_val") and size is None:
        text = "it has no target volume, so nothing can be validated on it: move it "
        yield Finding("no target", f"{text}from {folder}, or add its target")
    elif folder.endswith("_val") and size and size[0] < file.crop[1]:
        text = f"its target has fewer rows than columns, {size}, but a square as wide "
        text += "as it is compared: exchange the axes, or crop the columns"
        yield Finding("wide target", text)


def _of_attributes(file: KSpaceFile) -> Iterator[Finding]:
    """Compare the attributes `max` and `norm` with the target of all slices."""
    try:
        target = file.target_volume()
        values = {"max": target.max(), "norm": np.linalg.norm(target)}
        for name, value in values.items():
            said = file.number(name)
            if said is not None and not np.isclose(said, value, rtol=EQUAL, atol=0):
                text = f"the attribute {name!r} is {said:.6g}, but that of "
                text += f"{file.target} is {value:.6g}: repair the attribute"
                yield Finding("attribute", text)
    except InputError as error:
        yield Finding("values", str(error).removeprefix(f"{file.path}: "))


def _twins(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Find the files of a challenge with the name of another volume."""
    named: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        named.setdefault((path.parent.name.split("_")[0], path.stem), []).append(path)
    for paths in named.values():
        for path in paths:
            if others := ", ".join(str(other) for other in paths if other != path):
                yield path, f"{path} has the name of {others}: rename one"
