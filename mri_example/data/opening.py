"""Opening HDF5 files for reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from mri_example.errors import InputError
from mri_example.paths import check_file

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
