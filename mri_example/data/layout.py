"""What the fastMRI layout demands of the parts of a file.

Each function reads one part, and raises an `InputError` that names the file when the
part is not what it must be.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_example.data.header import Header
from mri_example.data.opening import dataset
from mri_example.errors import InputError

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
