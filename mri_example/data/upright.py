"""Magnitudes as slices are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from mri_example.errors import InputError

Volume = NDArray[np.float32]

UPRIGHT = ("I", "P", "L")  # downwards, backwards, leftwards


def upright(voxels: NDArray[Any], affine: NDArray[Any]) -> Volume:
    """Turn voxels so that slices along their third axis stand upright.

    The top of the head, or the nose, is upwards; the patient's left, or the back of the
    head, to the right.

    Args:
        voxels: Of three axes, the third from slice to slice.
        affine: Where voxels are, `(4, 4)`: to the right, anterior, superior.

    Returns:
        `(slices, rows, cols)`.

    Examples:
        >>> upright(np.zeros((5, 4, 3)), np.eye(4)).shape
        (3, 4, 5)
    """
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(UPRIGHT)
    )
    turned = orientations.apply_orientation(voxels, turn)
    slices = np.moveaxis(turned, int(turn[2, 0]), 0)
    return np.ascontiguousarray(slices, dtype=np.float32)


def check_magnitudes(voxels: NDArray[Any], path: Path) -> None:
    """Make sure that voxels are what a magnitude image holds.

    Raises:
        InputError: If one is negative or not finite, or all are zero.
    """
    if not np.isfinite(voxels).all() or voxels.min() < 0 or voxels.max() <= 0:
        raise InputError(
            f"{path} holds values that are not magnitudes (negative, not finite, or "
            f"zero everywhere): take the magnitude image of the scan"
        )
