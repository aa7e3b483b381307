"""The ways to choose columns around the center, as the fastMRI challenge has them.

Each pattern gives, bit by bit, the masks of the fastMRI package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from mri_example.errors import InputError

Columns: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Draw:
    """What the columns of one mask follow from.

    Args:
        rng: Where random numbers come from.
        cols: Number of columns.
        low: Number of columns in the center.
        acceleration: Columns per measured column.
        offset: First column of a regular pattern; `None` draws one.
    """

    rng: RandomState
    cols: int
    low: int
    acceleration: float
    offset: int | None

    def start(self, step: int) -> int:
        """Return the offset, if need be one drawn below `step`."""
        return self.rng.randint(0, step) if self.offset is None else self.offset


def random(draw: Draw) -> Columns:
    """Draw every column with the chance that gives the acceleration on average."""
    outside = max(draw.cols - draw.low, 1)
    chance = (draw.cols / draw.acceleration - draw.low) / outside
    return draw.rng.uniform(size=draw.cols) < chance


def equispaced(draw: Draw) -> Columns:
    """Take every n-th column, n being the acceleration; the center comes on top."""
    step = round(draw.acceleration)
    return _every(draw.cols, step, draw.start(step))


def equispaced_fraction(draw: Draw) -> Columns:
    """Space the columns so that they and the center give the acceleration together."""
    unspent = draw.cols - draw.low * draw.acceleration
    if unspent <= 0:
        raise InputError(
            f"{draw.low} central columns of {draw.cols} leave none to space at an "
            f"acceleration of {draw.acceleration}: it must be below "
            f"{draw.cols / draw.low:.3g}, or the center fraction smaller"
        )
    step = draw.acceleration * (draw.cols - draw.low) / unspent
    places = np.arange(draw.start(round(step)), draw.cols - 1, step)
    chosen = np.zeros(draw.cols, dtype=bool)
    chosen[np.around(places).astype(int)] = True
    return chosen


def magic(draw: Draw) -> Columns:
    """Take every n-th column, such that mirror images fall between those measured."""
    return _mirrored(draw, round(draw.acceleration))


def magic_fraction(draw: Draw) -> Columns:
    """Do as `magic`, spaced so that the center counts towards the acceleration."""
    outside = round(draw.cols / draw.acceleration) - draw.low
    if outside < 1:
        return np.zeros(draw.cols, dtype=bool)
    return _mirrored(draw, round(draw.cols / outside))


Pattern: TypeAlias = Callable[[Draw], Columns]
PATTERNS: dict[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (random, equispaced, equispaced_fraction, magic, magic_fraction)
}


def _every(cols: int, step: int, first: int) -> Columns:
    chosen = np.zeros(cols, dtype=bool)
    chosen[first::step] = True
    return chosen


def _mirrored(draw: Draw, step: int) -> Columns:
    offset = draw.start(step)
    positive, negative = (1, 2) if offset % 2 == 0 else (2, -1)
    half = (draw.cols + 1) // 2
    above = _every(half, step, offset + positive)
    below = _every(draw.cols - half, step, offset + negative)
    return np.fft.fftshift(np.concatenate([above, below[::-1]]))
