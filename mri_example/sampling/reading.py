"""One array from a file, whatever the format."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_example.errors import InputError
from mri_example.paths import check_file

Array: TypeAlias = NDArray[Any]
NAME = "mask"
# What the readers raise, by where a file is damaged.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile)


def read_array(path: Path) -> Array:
    """Read an array of numbers.

    Args:
        path: A file that ends in .npy, .npz, .h5 or .hdf5; anything else is text.

    Raises:
        InputError: If the file is missing, cannot be read, or leaves open which of its
            arrays is meant.
    """
    check_file(path)
    try:
        array = READERS.get(path.suffix, _text)(path)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read as {path.suffix or 'text'} ({error}): write the "
            f"mask as .npy, .npz, .h5, or as text with numbers between spaces or commas"
        ) from error
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{path} holds {array.dtype}, but a mask is made of the numbers 0 and 1"
        )
    return array


def _npy(path: Path) -> Array:
    array: Array = np.load(path, allow_pickle=False)
    return array


def _npz(path: Path) -> Array:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[_only(path, arrays)])


def _hdf5(path: Path) -> Array:
    with h5py.File(path, "r") as file:
        arrays: Mapping[str, h5py.Dataset] = {
            name: item for name, item in file.items() if isinstance(item, h5py.Dataset)
        }
        return np.asarray(arrays[_only(path, arrays)])


def _text(path: Path) -> Array:
    text = path.read_text().replace(",", " ")
    if not text.strip():
        raise ValueError("it is empty")
    return np.loadtxt(io.StringIO(text))


def _only(path: Path, names: Iterable[str]) -> str:
    """Return the name of the mask among arrays: `mask`, or the only one."""
    found = sorted(names)
    if NAME in found:
        return NAME
    if len(found) != 1:
        raise InputError(
            f"{path} holds the arrays {', '.join(found) or '(none)'}, but no {NAME!r}: "
            f"name the one that is meant so"
        )
    return found[0]


READERS: dict[str, Callable[[Path], Array]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
