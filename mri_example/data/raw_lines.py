"""Where the lines of a raw file belong in k-space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_example.data.header import Header
from mri_example.data.raw_selection import image_indices
from mri_example.errors import InputError

READOUT = ("active_channels", "number_of_samples", "discard_pre", "discard_post")


@dataclass(frozen=True, eq=False)
class Lines:
    """The lines of images, in the order of the file.

    Attributes:
        index: Numbers of the acquisitions.
        slice: Their slices, from 0.
        column: Their columns; those at the sides of k-space may not be measured.
        shape: Slices, coils, rows and columns of the k-space.
        samples: The first sample of a line that counts, and the one after the last.
        row: Where the first of them belongs.
    """

    index: NDArray[np.int64]
    slice: NDArray[np.int64]
    column: NDArray[np.int64]
    shape: tuple[int, int, int, int]
    samples: tuple[int, int]
    row: int

    @classmethod
    def find(cls, heads: NDArray[Any], header: Header, path: Path) -> Lines:
        """Find the lines of images, and their places.

        Steps of the phase encoding are placed around the center that the header says;
        a line that is shorter than the readout, a partial echo, by its central sample.

        Args:
            heads: Those of all acquisitions.
            header: Sizes of the scan.
            path: The file.

        Raises:
            InputError: If the file does not hold one stack of slices, lines differ in
                coils or samples, or do not fit into the matrix.
        """
        index = image_indices(heads, path)
        heads = heads[index]
        coils, samples, row = _readout(heads, header.encoded[0], path)
        slices = _slices(heads["idx"]["slice"], path)
        return cls(
            index=index,
            slice=slices,
            column=_columns(heads["idx"]["kspace_encode_step_1"], header, path),
            shape=(int(slices.max()) + 1, coils, *header.encoded[:2]),
            samples=samples,
            row=row,
        )


def _slices(counter: NDArray[np.uint16], path: Path) -> NDArray[np.int64]:
    slices = counter.astype(np.int64)
    missing = set(range(slices.min(), slices.max())) - set(slices.tolist())
    if missing:
        raise InputError(
            f"{path} has no lines of slice {min(missing)}, but of slices before and "
            f"behind: copy it again"
        )
    slices -= slices.min()
    return slices


def _columns(
    counter: NDArray[np.uint16], header: Header, path: Path
) -> NDArray[np.int64]:
    steps = counter.astype(np.int64)
    columns = steps + header.padding[0]
    outside = columns.min() < 0 or columns.max() >= header.encoded[1]
    if outside or steps.max() > header.maximum:
        raise InputError(
            f"{path} has phase encodings from {steps.min()} to {steps.max()}, but the "
            f"header says at most {header.maximum}, {header.center} in the middle of "
            f"{header.encoded[1]} columns: correct the header"
        )
    return columns


def _readout(
    heads: NDArray[Any], rows: int, path: Path
) -> tuple[int, tuple[int, int], int]:
    for name in (*READOUT, "center_sample"):
        values = np.unique(heads[name])
        if len(values) > 1:
            raise InputError(
                f"{path} has lines of {name} {values[0]} and {values[-1]}, but all "
                f"must be alike: write them into separate files"
            )
    coils, count, before, after = (int(heads[name][0]) for name in READOUT)
    kept, center = count - before - after, int(heads["center_sample"][0])
    row = 0 if kept == rows else rows // 2 - (center - before)
    if min(coils, kept) < 1 or row < 0 or row + kept > rows:
        raise InputError(
            f"{path} has lines of {kept} samples of {coils} coils, sample {center} in "
            f"the middle, but the header says {rows} rows: correct the header"
        )
    return coils, (before, count - after), row
