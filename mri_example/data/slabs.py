"""Volumes cut into slabs of slices that overlap, and put together again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Magnitudes = NDArray[np.float32]


def slab_starts(slices: int, slab: int, step: int) -> list[int]:
    """Return the first slices of slabs that cover a volume.

    Args:
        slices: Slices of the volume, at least as many as in a slab.
        slab: Slices of a slab.
        step: From one slab to the next; the last step may be shorter.

    Examples:
        >>> slab_starts(slices=10, slab=4, step=3)
        [0, 3, 6]
        >>> slab_starts(slices=9, slab=4, step=3)
        [0, 3, 5]
    """
    last = slices - slab
    return sorted({*range(0, last, step), last})


def blend(slabs: Mapping[int, Magnitudes], slices: int) -> Magnitudes:
    """Put slabs together; where they overlap, the middle of a slab counts most.

    Args:
        slabs: Magnitudes `(depth, H, W)` by first slice.
        slices: Slices of the volume, each in at least one slab.

    Returns:
        The volume, `(slices, H, W)`.

    Examples:
        >>> blend({0: np.zeros((2, 1, 1)), 1: np.ones((2, 1, 1))}, 3).ravel()
        array([0. , 0.5, 1. ], dtype=float32)
    """
    plane = next(iter(slabs.values())).shape[1:]
    volume, total = np.zeros((slices, *plane)), np.zeros((slices, 1, 1))
    for start, slab in sorted(slabs.items()):
        depth = len(slab)
        rising = np.arange(1.0, depth + 1)
        weight = np.minimum(rising, rising[::-1]).reshape(-1, 1, 1)
        volume[start : start + depth] += weight * slab
        total[start : start + depth] += weight
    return (volume / total).astype(np.float32)
