"""HDF5 files with k-space, in the layout of the fastMRI data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_example.data.layout import (
    TARGETS,
    crop_of,
    header_of,
    kspace_of,
    mask_of,
    padding_of,
    target_of,
)
from mri_example.data.metadata import scan_name
from mri_example.data.opening import dataset, opened
from mri_example.errors import InputError
from mri_example.paths import check_folder

SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, eq=False)
class KSpaceFile:
    """What one file holds, short of the k-space itself.

    Attributes:
        path: Where it is.
        shape: Shape of the k-space, `(slices, [coils,] rows, cols)`.
        target: Name of the data set with the target, if there is one.
        crop: Rows and columns of target and reconstruction.
        padding: First measured column, and the one after the last.
        encoded: Columns that the header speaks of, if there is one.
        mask: The mask that a file of undersampled k-space brings along, `(cols,)`.
        attributes: Acquisition, maximum of the target volume and the like.
        scan: The acquisition and the scanner, for example `CORPD_FBK/Skyra`.
        assumed: What had to be assumed because the file does not say it, or "".
    """

    path: Path
    shape: tuple[int, ...]
    target: str | None
    crop: tuple[int, int]
    padding: tuple[int, int]
    encoded: int | None
    mask: NDArray[np.float32] | None
    attributes: Mapping[str, Any]
    scan: str
    assumed: str

    @classmethod
    def inspect(cls, path: Path) -> KSpaceFile:
        """Look at a file.

        Raises:
            InputError: If it is missing, truncated, not HDF5, or not in the layout.
        """
        with opened(path) as file:
            kspace = kspace_of(file, path)
            target, header = target_of(file, path), header_of(file, path)
            rows, cols = kspace.shape[-2:]
            crop = crop_of(target, header, (rows, cols))
            return cls(
                path=path,
                shape=kspace.shape,
                target=target.name.lstrip("/") if target else None,
                crop=crop,
                padding=padding_of(header, cols, path),
                encoded=header.encoded[1] if header else None,
                mask=mask_of(file, cols, path),
                attributes=dict(file.attrs),
                scan=scan_name(
                    file.attrs.get("acquisition"), header.scanner if header else ""
                ),
                assumed="" if header else _assumed(crop),
            )

    @property
    def slices(self) -> int:
        """Number of slices; the first axis of the data, whatever the header says."""
        return self.shape[0]

    @property
    def coils(self) -> int:
        """Number of coils, 1 for single-coil data."""
        return self.shape[1] if len(self.shape) == 4 else 1

    def kspace(self, index: int) -> NDArray[np.complex64]:
        """Read the k-space of one slice, `([coils,] rows, cols)`.

        Raises:
            InputError: If it cannot be read or holds NaN or infinite values.
        """
        with opened(self.path) as file:
            stored = file["kspace"][index]
        with np.errstate(over="ignore"):  # what is too large becomes infinite, below
            kspace: NDArray[np.complex64] = stored.astype(np.complex64)
        if not np.isfinite(kspace).all():
            raise InputError(
                f"{self.path}: the k-space of slice {index} holds NaN or infinite "
                f"values: repair or remove the file"
            )
        return kspace

    def number(self, name: str) -> float | None:
        """Return an attribute, `None` if there is no such.

        Raises:
            InputError: If it is not one finite number.
        """
        value = self.attributes.get(name)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{self.path}: the attribute {name!r} is {value!r}, but must be a "
                f"number: repair or remove it"
            )
        return number

    @cached_property
    def maximum(self) -> float | None:
        """Maximum of the target volume, as it is said or read; `None` without one."""
        said = self.number("max")
        if said is not None or self.target is None:
            return said
        return float(self.target_volume().max())

    def check_target(self) -> str:
        """Return the name of the target's data set.

        Raises:
            InputError: If the file has none.
        """
        if self.target is None:
            raise InputError(
                f"{self.path} has no target ({' or '.join(TARGETS)}), so nothing can "
                f"be compared with it: evaluate on files that are fully sampled"
            )
        return self.target

    def target_volume(self) -> NDArray[np.float32]:
        """Read the target of all slices.

        Raises:
            InputError: If the file has none, or it holds NaN or infinite values.
        """
        target = _volume(self.path, self.check_target())
        if not np.isfinite(target).all():
            raise InputError(
                f"{self.path}: {self.target} holds NaN or infinite values: repair or "
                f"remove the file"
            )
        return target


def volume_paths(folder: Path) -> list[Path]:
    """List the HDF5 files of a folder, sorted by name.

    Raises:
        InputError: If the folder is missing or holds none.
    """
    check_folder(folder)
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise InputError(
            f"the folder {folder} holds no .h5 files: name the one that does"
        )
    return paths


def read_reconstruction(path: Path) -> NDArray[np.float32]:
    """Read a reconstruction, `(slices, H, W)`.

    Raises:
        InputError: If the file cannot be read or holds no real reconstruction.
    """
    return _volume(path, "reconstruction")


def _volume(path: Path, name: str) -> NDArray[np.float32]:
    with opened(path) as file:
        stored = dataset(file, name, path)
        if stored.shape is None:
            raise InputError(f"{path}: {name} is empty: write it again")
        if stored.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: {name} is {stored.dtype}, but must be real magnitudes: "
                f"write their absolute values"
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            volume: NDArray[np.float32] = stored[()].astype(np.float32)
    return volume


def _assumed(crop: tuple[int, int]) -> str:
    return (
        f"no ISMRMRD header: all columns are taken as measured, and images are cropped "
        f"to {crop[0]} x {crop[1]}"
    )
