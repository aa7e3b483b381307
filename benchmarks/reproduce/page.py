"""The page of a comparison: table, slices, learning curves, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduce.table import table
from mri_example.data.files import KSpaceFile
from mri_example.demo import slice_of
from mri_example.report import Slice, learning_curve, versions, write_page

LEAD = """Classical methods, and networks that were trained alike on the same heads, on
one head that none saw in training; k-space is simulated. Scores are mean ± sd."""


def write_comparison(
    rows: Sequence[Mapping[str, Any]],
    slices: Sequence[Slice],
    logs: Mapping[str, Path],
    settings: Mapping[str, Any],
    path: Path,
) -> Path:
    """Write the table of all methods, slices as each shows them, and their curves."""
    facts = {"Settings": settings, "Versions": versions()}
    curves = {name: learning_curve(log) for name, log in logs.items()}
    parts = {"tables": {"Scores": table(rows)}, "slices": slices, "curves": curves}
    return write_page(path, "Comparison", LEAD, facts=facts, **parts)


def middle_slice(
    targets: Path, reconstructions: Mapping[str, Path], title: str
) -> Slice:
    """Return the middle slice of the volume, as the methods show it."""
    (volume,) = targets.glob("*.h5")
    index = KSpaceFile.inspect(volume).slices // 2
    return slice_of(targets, reconstructions, index, f"{title}, slice {index}")
