"""Which volumes are simulated into which files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mri_example.data.anatomy import embedded_anatomy
from mri_example.data.files import KSpaceFile
from mri_example.data.simulate import Simulation
from mri_example.data.upright import Volume
from mri_example.errors import InputError

LOG = logging.getLogger(__name__)
EMPTY = 0.01  # share of a slice that must reach a tenth of the volume's maximum


def simulate_demo(root: Path, simulation: Simulation) -> list[Path]:
    """Write the demo's data set from the embedded anatomy, split by subject.

    Training: subjects "sagittal" and "average" along all three axes and the first 16
    slices of "epi"; validation: the rest of "epi"; test: "coronal". Empty slices at
    the ends of a volume are left out. Files that exist are left as they are.

    Args:
        root: Folder for `singlecoil_train`, `singlecoil_val` and `singlecoil_test`, or
            with several coils for `multicoil_train` and so on.
        simulation: How to simulate.

    Returns:
        The files that were written now.

    Raises:
        InputError: If a file exists that was simulated in another way.
    """
    heads = embedded_anatomy()
    plan = {
        f"train/{subject}_axis{axis}": np.moveaxis(heads[subject], axis, 0)
        for subject in ("sagittal", "average")
        for axis in range(3)
    }
    plan["train/epi_first"] = heads["epi"][:16]
    plan["val/epi_rest"] = heads["epi"][16:]
    plan["test/coronal_axis0"] = heads["coronal"]
    jobs = [
        (
            root / f"{simulation.challenge}_{name}.h5",
            name.split("/")[1].split("_")[0],
            volume,
        )
        for name, volume in plan.items()
    ]
    return _write_missing(jobs, simulation, logging.DEBUG)


def simulate_volumes(
    volumes: Iterable[tuple[str, Volume]], folder: Path, simulation: Simulation
) -> list[Path]:
    """Write one file for each volume, for example those of `nifti_volumes`.

    Empty slices at the ends of a volume are left out, and how many is logged.

    Args:
        volumes: Names and magnitudes.
        folder: Where the files go, for example `.../singlecoil_train`.
        simulation: How to simulate.

    Returns:
        The files that were written now; those that exist are left as they are.

    Raises:
        InputError: If a file exists that was simulated in another way.
    """
    jobs = ((folder / f"{name}.h5", name, volume) for name, volume in volumes)
    return _write_missing(jobs, simulation, logging.WARNING)


def without_empty_slices(volume: Volume) -> Volume:
    """Drop empty slices at both ends.

    Those of which less than a hundredth reaches a tenth of the volume's maximum.
    """
    share = (volume > 0.1 * volume.max()).mean(axis=(1, 2))
    filled = np.flatnonzero(share >= EMPTY)
    return volume[filled[0] : filled[-1] + 1] if len(filled) else volume[:0]


def _write_missing(
    jobs: Iterable[tuple[Path, str, Volume]], simulation: Simulation, level: int
) -> list[Path]:
    written = []
    for path, patient, volume in jobs:
        if path.exists():
            _check_same(path, simulation)
            continue
        filled = without_empty_slices(volume)
        if not len(filled):
            raise InputError(f"every slice of {patient} is empty: take another volume")
        if len(filled) < len(volume):
            left_out = len(volume) - len(filled)
            LOG.log(level, "%s: %d empty slices at its ends left out", path, left_out)
        simulation.write(path, filled, patient)
        written.append(path)
    return written


def _check_same(path: Path, simulation: Simulation) -> None:
    before = KSpaceFile.inspect(path).attributes.get("simulated", "measured")
    if before != str(simulation):
        raise InputError(
            f"{path} exists and is {before}, not {simulation!r}: choose another folder "
            f"or the same options"
        )
