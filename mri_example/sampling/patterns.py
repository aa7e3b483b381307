"""The ways to choose columns outside of the center, as the fastMRI challenge has them.

A pattern takes a random generator, the number of columns, of central columns, the
acceleration and an offset (`None` draws one), and returns which columns are measured.
Each is bit for bit that of the fastMRI package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Columns: TypeAlias = NDArray[np.bool_]
Pattern: TypeAlias = Callable[[RandomState, int, int, float, int | None], Columns]


def random(
    rng: RandomState, cols: int, low: int, acceleration: float, offset: int | None
) -> Columns:
    """Draw every column with the chance that gives the acceleration on average."""
    del offset
    chance = (cols / acceleration - low) / (cols - low) if cols > low else 0.0
    return rng.uniform(size=cols) < chance


def equispaced(
    rng: RandomState, cols: int, low: int, acceleration: float, offset: int | None
) -> Columns:
    """Take every n-th column, n being the acceleration; the center comes on top."""
    del low
    step = round(acceleration)
    return _every(cols, step, rng.randint(0, step) if offset is None else offset)


def equispaced_fraction(
    rng: RandomState, cols: int, low: int, acceleration: float, offset: int | None
) -> Columns:
    """Space the columns so that they and the center give the acceleration together."""
    step = acceleration * (low - cols) / (low * acceleration - cols)
    start = rng.randint(0, round(step)) if offset is None else offset
    chosen = np.zeros(cols, dtype=bool)
    chosen[np.around(np.arange(start, cols - 1, step)).astype(int)] = True
    return chosen


def magic(
    rng: RandomState, cols: int, low: int, acceleration: float, offset: int | None
) -> Columns:
    """Take every n-th column, shifted on one side so that mirror images fill gaps."""
    del low
    return _mirrored(rng, cols, round(acceleration), offset)


def magic_fraction(
    rng: RandomState, cols: int, low: int, acceleration: float, offset: int | None
) -> Columns:
    """Do as `magic`, spaced so that the center is counted in the acceleration."""
    budget = round(cols / acceleration)
    outside = budget - min(max(low, 1), budget)
    step = round(cols / outside) if outside else 0
    return _mirrored(rng, cols, step, offset)


def _every(cols: int, step: int, offset: int) -> Columns:
    chosen = np.zeros(cols, dtype=bool)
    chosen[offset::step] = True
    return chosen


def _mirrored(rng: RandomState, cols: int, step: int, offset: int | None) -> Columns:
    if step < 1:
        return np.zeros(cols, dtype=bool)
    if offset is None:
        offset = rng.randint(0, step)
    positive, negative = (1, 2) if offset % 2 == 0 else (2, -1)
    half = (cols + 1) // 2
    above = _every(half, step, offset + positive)
    below = _every(cols - half, step, offset + negative)
    return np.fft.fftshift(np.concatenate([above, below[::-1]]))


PATTERNS: dict[str, Pattern] = {
    "random": random,
    "equispaced": equispaced,
    "equispaced_fraction": equispaced_fraction,
    "magic": magic,
    "magic_fraction": magic_fraction,
}
