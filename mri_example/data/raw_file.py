"""Reading the HDF5 of an ISMRMRD raw file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ismrmrd.file import Acquisitions
from ismrmrd.hdf5 import acquisition_header_dtype
from numpy.typing import NDArray

from mri_example.data.files import opened
from mri_example.data.raw_header import RawHeader
from mri_example.data.raw_lines import Lines
from mri_example.errors import InputError


def read_raw(
    path: Path,
) -> tuple[RawHeader, NDArray[np.complex64], NDArray[np.float32]]:
    """Read header, k-space and mask of a raw file.

    Returns:
        The header; k-space `(slices, coils, rows, cols)`, the mean of all averages, and
        zero where nothing was measured; which columns were measured, `(cols,)`.

    Raises:
        InputError: If it is no Cartesian raw file of one stack of slices, or holds NaN
            or infinite values.
    """
    with opened(path) as file:
        group = _group(file, path)
        header = RawHeader.parse(_xml(group), path)
        lines = Lines.find(_heads(group, path), header.sizes, path)
        kspace, times = _gathered(group["data"], lines, path)
    return header, kspace, _mask(times > 0, path)


def _group(file: h5py.File, path: Path) -> h5py.Group:
    groups = [g for g in file.values() if isinstance(g, h5py.Group)]
    groups = [g for g in groups if "data" in g and "xml" in g]
    if len(groups) != 1:
        raise InputError(
            f"{path} holds {len(groups)} ISMRMRD scans (groups of data and xml) among "
            f"{sorted(file)}, but must hold one: name a raw file of one scan"
        )
    return groups[0]


def _xml(group: h5py.Group) -> bytes:
    xml = np.ravel(group["xml"][()])[0]
    return xml if isinstance(xml, bytes) else str(xml).encode()


def _heads(group: h5py.Group, path: Path) -> NDArray[Any]:
    try:
        heads: NDArray[Any] = group["data"].fields("head")[:]
        return heads.astype(acquisition_header_dtype)
    except (AttributeError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: its data are not acquisitions of ISMRMRD ({error}): convert the "
            f"scanner's file again"
        ) from error


def _gathered(
    data: h5py.Dataset, lines: Lines, path: Path
) -> tuple[NDArray[np.complex64], NDArray[np.int64]]:
    """Return the mean of the lines of each place, and how many there are."""
    kspace = np.zeros(lines.shape, dtype=np.complex64)
    times = np.zeros((lines.shape[0], lines.shape[-1]), dtype=np.int64)
    first, last = lines.samples
    rows = slice(lines.row, lines.row + last - first)
    for index, z, column in zip(lines.index, lines.slice, lines.column, strict=True):
        kspace[z, :, rows, column] += _line(data, int(index), path)[:, first:last]
        times[z, column] += 1
    kspace /= np.maximum(times, 1)[:, None, None, :]
    return kspace, times


def _line(data: h5py.Dataset, index: int, path: Path) -> NDArray[np.complex64]:
    try:
        line: NDArray[np.complex64] = Acquisitions(data)[index].data
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: acquisition {index} cannot be read ({error}): copy it again"
        ) from error
    if not np.isfinite(line).all():
        raise InputError(
            f"{path}: acquisition {index} holds NaN or infinite values: remove it"
        )
    return line


def _mask(measured: NDArray[np.bool_], path: Path) -> NDArray[np.float32]:
    (other,) = np.nonzero((measured != measured[0]).any(axis=1))
    if other.size:
        raise InputError(
            f"{path}: slice {other[0]} was measured along other columns than slice 0, "
            f"but the fastMRI layout has one mask: write them into separate files"
        )
    mask: NDArray[np.float32] = measured[0].astype(np.float32)
    return mask
