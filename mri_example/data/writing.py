"""Writing HDF5 files, which appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_example.data.header import Header
from mri_example.data.layout import TARGETS
from mri_example.errors import InputError

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
