"""HDF5 files in the layout of the fastMRI data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_example.data.header import Header
from mri_example.data.writing import whole_file
from mri_example.errors import InputError

TARGETS = ("reconstruction_esc", "reconstruction_rss")
SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class KSpaceFile:
    """What one file holds, short of the k-space itself.

    Attributes:
        path: Where it is.
        shape: Shape of the k-space, `(slices, [coils,] rows, cols)`.
        target: Name of the data set with the target, if there is one.
        crop: Rows and columns of target and reconstruction.
        padding: First and last measured column, if the header says so.
        mask: The mask the file brings along (test files), `(cols,)`.
        attributes: Acquisition, maximum of the target volume and the like.
        assumed: What had to be assumed because the file does not say it, or "".
    """

    path: Path
    shape: tuple[int, ...]
    target: str | None
    crop: tuple[int, int]
    padding: tuple[int, int] | None
    mask: NDArray[np.float32] | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    assumed: str = ""

    @classmethod
    def inspect(cls, path: Path) -> KSpaceFile:
        """Look at a file.

        Raises:
            InputError: If it is missing, truncated, not HDF5, or not in the layout.
        """
        with opened(path) as file:
            kspace = _kspace(file, path)
            header = _header(file, path)
            target = next((name for name in TARGETS if name in file), None)
            crop, assumed = _crop(file, target, header, kspace.shape)
            return cls(
                path=path,
                shape=kspace.shape,
                target=target,
                crop=crop,
                padding=header.padding if header else None,
                mask=_mask(file, kspace.shape[-1], path),
                attributes=dict(file.attrs),
                assumed=assumed,
            )

    @property
    def slices(self) -> int:
        """Number of slices; the first axis of the data, whatever the header says."""
        return self.shape[0]

    def kspace(self, index: int) -> NDArray[np.complex64]:
        """Read the k-space of one slice.

        Raises:
            InputError: If it cannot be read or holds NaN or infinite values.
        """
        with opened(self.path) as file:
            kspace: NDArray[np.complex64] = file["kspace"][index].astype(np.complex64)
        if not np.isfinite(kspace).all():
            raise InputError(
                f"{self.path}: the k-space of slice {index} holds NaN or infinite "
                f"values; repair or remove the file"
            )
        return kspace

    def target_volume(self) -> NDArray[np.float32]:
        """Read the target of all slices.

        Raises:
            InputError: If the file has none.
        """
        if self.target is None:
            raise InputError(
                f"{self.path} has no target ({' or '.join(TARGETS)}), so nothing can be "
                f"compared with it: evaluate on files that are fully sampled"
            )
        with opened(self.path) as file:
            volume: NDArray[np.float32] = file[self.target][()]
        return volume


def volume_paths(folder: Path) -> list[Path]:
    """List the HDF5 files of a folder, sorted by name.

    Raises:
        InputError: If the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist: check the path")
    paths = sorted(p for p in folder.iterdir() if _is_volume(p))
    if not paths:
        raise InputError(f"the folder {folder} holds no .h5 files: check the path")
    return paths


def write_kspace(
    path: Path,
    kspace: NDArray[np.complex64],
    target: NDArray[np.float32],
    header: Header,
    attributes: Mapping[str, Any],
) -> None:
    """Write a single-coil file in the layout of the fastMRI data set.

    The attributes `max` and `norm` are those of the target volume.
    """
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file["kspace"] = kspace
        file["reconstruction_esc"] = target
        file["ismrmrd_header"] = header.xml()
        file.attrs["max"] = float(target.max())
        file.attrs["norm"] = float(np.linalg.norm(target))
        file.attrs.update(attributes)


def write_reconstruction(path: Path, volume: NDArray[np.float32]) -> None:
    """Write a reconstruction as the leaderboard takes it.

    Args:
        path: The file; its name should be that of the input.
        volume: Magnitudes, `(slices, H, W)`.
    """
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file["reconstruction"] = volume.astype(np.float32)


def read_reconstruction(path: Path) -> NDArray[np.float32]:
    """Read a reconstruction.

    Raises:
        InputError: If the file cannot be read or holds no reconstruction.
    """
    with opened(path) as file:
        if "reconstruction" not in file:
            raise InputError(f"{path} holds no data set 'reconstruction'")
        volume: NDArray[np.float32] = file["reconstruction"][()]
    return volume


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        InputError: If it is missing, truncated or of another format.
    """
    if not path.is_file():
        raise InputError(f"the file {path} does not exist: check the path")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path} cannot be read as HDF5, it is truncated or of another format: copy "
            f"it again"
        ) from error


def _is_volume(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith(".")


def _kspace(file: h5py.File, path: Path) -> h5py.Dataset:
    if "kspace" not in file:
        raise InputError(
            f"{path} holds no data set 'kspace' but {sorted(file)}: it is not a raw file "
            f"in the fastMRI layout"
        )
    kspace = file["kspace"]
    if kspace.ndim not in (3, 4) or 0 in kspace.shape:
        raise InputError(
            f"{path}: k-space has shape {kspace.shape}, but must be (slices, rows, cols) "
            f"or (slices, coils, rows, cols)"
        )
    if kspace.dtype.kind != "c":
        raise InputError(f"{path}: k-space is {kspace.dtype}, but must be complex")
    return kspace


def _header(file: h5py.File, path: Path) -> Header | None:
    if "ismrmrd_header" not in file:
        return None
    try:
        return Header.parse(file["ismrmrd_header"][()])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _mask(file: h5py.File, cols: int, path: Path) -> NDArray[np.float32] | None:
    if "mask" not in file:
        return None
    mask: NDArray[np.float32] = np.asarray(file["mask"], dtype=np.float32).ravel()
    if len(mask) != cols or not mask.any():
        raise InputError(
            f"{path}: the mask has {len(mask)} columns, {int(mask.sum())} of them "
            f"measured, but the k-space has {cols} columns"
        )
    return mask


def _crop(
    file: h5py.File, target: str | None, header: Header | None, shape: tuple[int, ...]
) -> tuple[tuple[int, int], str]:
    rows, cols = shape[-2:]
    if target is not None:
        height, width = file[target].shape[-2:]
        return (height, width), ""
    if header is not None:
        height, width = header.recon[:2]
        if width > cols:
            height = width = cols
        return (min(height, rows), width), ""
    side = min(rows, cols)
    return (side, side), f"no header and no target: a square of {side} is reconstructed"
