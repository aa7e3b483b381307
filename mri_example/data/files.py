"""HDF5 files in the layout of the fastMRI data set: read, checked and written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.paths import check_file, check_folder

# What h5py raises, by where a file is damaged.
UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, for as long as the block runs.

    Files are opened anew for every access: handles do not survive the start of a worker
    process, and those that stay open make memory grow.

    Raises:
        InputError: If it is missing, truncated, damaged or of another format.
    """
    check_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read as HDF5 ({error}): if it is truncated, damaged or "
            f"of another format, copy it again"
        ) from error


def dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return one data set of an open file.

    Raises:
        InputError: If there is no such data set.
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise InputError(
            f"{path} holds no data set {name!r} but {sorted(file)}: name a file in the "
            f"fastMRI layout"
        )
    return found


UNKNOWN = "unknown"
REPEATED = "REPEAT"  # at the end of an acquisition that was done again
TARGETS = ("reconstruction_esc", "reconstruction_rss")
Pair = tuple[int, int]


def kspace_of(file: h5py.File, path: Path) -> h5py.Dataset:
    """Return the k-space, `(slices, rows, cols)` or `(slices, coils, rows, cols)`."""
    kspace = dataset(file, "kspace", path)
    if kspace.ndim not in (3, 4) or 0 in kspace.shape:
        raise InputError(
            f"{path}: k-space has shape {kspace.shape}, but must be (slices, rows, "
            f"cols) or (slices, coils, rows, cols): reorder its axes"
        )
    if kspace.dtype.kind != "c":
        raise InputError(
            f"{path}: k-space is {kspace.dtype}, but must be complex: magnitude images "
            f"are no raw data, simulate k-space from them"
        )
    return kspace


def target_of(file: h5py.File, path: Path) -> h5py.Dataset | None:
    """Return the target, real `(slices, H, W)`, if there is one.

    Single-coil files may hold that of all coils too, which then is not their target.
    """
    names = TARGETS if file["kspace"].ndim == 3 else reversed(TARGETS)
    name = next((name for name in names if name in file), None)
    if name is None:
        return None
    target = dataset(file, name, path)
    slices = len(file["kspace"])
    fits = target.ndim == 3 and len(target) == slices and target.size
    if not fits or target.dtype.kind != "f":
        raise InputError(
            f"{path}: {name} is {target.dtype} of shape {target.shape}, but must hold "
            f"real images (slices, H, W) of all {slices} slices: remove or repair it"
        )
    return target


def header_of(file: h5py.File, path: Path) -> Header | None:
    """Return the header, if there is one."""
    if "ismrmrd_header" not in file:
        return None
    try:
        return Header.parse(file["ismrmrd_header"][()])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def mask_of(file: h5py.File, cols: int, path: Path) -> NDArray[np.float32] | None:
    """Return the mask along the columns, if the file is undersampled."""
    if "mask" not in file:
        return None
    mask: NDArray[np.float32] = np.asarray(file["mask"], dtype=np.float32)
    if not np.isin(mask, (0, 1)).all():
        raise InputError(
            f"{path}: the mask has values other than 0 and 1, so it leaves open which "
            f"columns were measured: repair the file"
        )
    if mask.shape != (cols,) or not mask.any():
        raise InputError(
            f"{path}: the mask has shape {mask.shape}, {int(mask.sum())} entries of it "
            f"measured, but the k-space has {cols} columns: repair the file"
        )
    return mask


def padding_of(header: Header | None, cols: int, path: Path) -> Pair:
    """Return the first measured column and the one after the last."""
    left, right = header.padding if header else (0, cols)
    left, right = max(left, 0), min(right, cols)
    if left >= right:
        raise InputError(
            f"{path}: according to the header none of the {cols} columns of k-space is "
            f"measured: remove the data set 'ismrmrd_header'"
        )
    return left, right


def crop_of(target: h5py.Dataset | None, header: Header | None, plane: Pair) -> Pair:
    """Return rows and columns of the reconstruction: of target, header, or a square."""
    side = min(plane)
    height, width = (side, side)
    if target is not None:
        height, width = target.shape[-2:]
    elif header is not None:
        height, width = header.recon[:2]
    rows, cols = plane
    return (min(height, rows), width) if width <= cols else (min(cols, rows), cols)


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
        trajectory: What the header says of it, or "".
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
    trajectory: str
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
                trajectory=header.trajectory if header else "",
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


SINGLE_COIL, MULTI_COIL = TARGETS


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Offer a temporary name beside `path`, and rename it into place at the end.

    After an exception the temporary file is removed and `path` is what it was.

    Args:
        path: The file to be written; its folder is made.

    Raises:
        InputError: If nothing can be written there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error}): choose another folder or make room"
        ) from error
    finally:
        if partial.exists():
            partial.unlink()


def write_kspace(
    path: Path,
    kspace: NDArray[np.complex64],
    target: NDArray[np.float32] | None,
    header: Header | bytes,
    attributes: Mapping[str, Any],
    mask: NDArray[np.float32] | None = None,
) -> None:
    """Write a file in the layout of the fastMRI data set.

    Args:
        path: The file.
        kspace: `(slices, rows, cols)`, or `(slices, coils, rows, cols)`.
        target: Magnitudes, `(slices, H, W)`; the attributes `max` and `norm` are its
            maximum and its Euclidean norm. Undersampled k-space has none.
        header: Sizes of the scan, or the whole ISMRMRD header.
        attributes: Further attributes.
        mask: Which columns were measured, of undersampled k-space, `(cols,)`.
    """
    name = SINGLE_COIL if kspace.ndim == 3 else MULTI_COIL
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header.xml() if isinstance(header, Header) else header
        if target is not None:
            file[name] = target
            file.attrs["max"] = float(target.max())
            file.attrs["norm"] = float(np.linalg.norm(target))
        if mask is not None:
            file["mask"] = mask
        file.attrs.update(attributes)


def write_reconstruction(
    path: Path,
    volume: NDArray[np.float32],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a reconstruction as the leaderboard takes it.

    Args:
        path: The file; its name should be that of the input.
        volume: Magnitudes, `(slices, H, W)`.
        attributes: How the volume was undersampled: `acceleration`,
            `num_low_frequency`, `mask`.
    """
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file["reconstruction"] = volume.astype(np.float32)
        file.attrs.update(attributes or {})


def scan_name(acquisition: Any, scanner: str) -> str:
    """Return the acquisition and the scanner it was done on.

    Args:
        acquisition: The attribute of a file, or `None`.
        scanner: The model that its header names, or "".

    Examples:
        >>> scan_name("CORPDFS_FBKREPEAT", "Skyra")
        'CORPDFS_FBK/Skyra'
        >>> scan_name(None, "")
        'unknown/unknown'
    """
    told = acquisition
    if isinstance(acquisition, bytes):
        told = acquisition.decode(errors="replace")
    kind = str(told or UNKNOWN).removesuffix(REPEATED)
    return f"{kind}/{scanner or UNKNOWN}"
