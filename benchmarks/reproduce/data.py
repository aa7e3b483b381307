"""The heads: the embedded ones, or NIfTI files, split by subject."""

from __future__ import annotations

from pathlib import Path

from mri_example.data.anatomy import nifti_volumes
from mri_example.data.simulate import Simulation, simulate_demo, simulate_volumes
from mri_example.errors import InputError


def prepare(root: Path, simulation: Simulation, source: Path | None) -> None:
    """Write a data root, unless it is there.

    Of a folder of NIfTI files the last by name is for the test, the one before it for
    validation, and the others are for training; slices lie along their third axis.
    """
    if source is None:
        simulate_demo(root, simulation)
        return
    volumes = [*nifti_volumes(source)]
    if len(volumes) < 3:
        raise InputError(
            f"data is {source} with {len(volumes)} volumes, but training, validation "
            f"and test need one each: give a folder of at least 3 NIfTI files"
        )
    parts = {"train": volumes[:-2], "val": volumes[-2:-1], "test": volumes[-1:]}
    for part, chosen in parts.items():
        folder = root / f"{simulation.challenge}_{part}"
        simulate_volumes(chosen, folder, simulation)
