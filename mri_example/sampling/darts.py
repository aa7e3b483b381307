r"""Points of a grid, spread at random, none too close to another.

A permutation of the grid says in which order darts are thrown. A dart sticks unless it
lies within the disc around one that stuck before. The radius of a disc, in samples,
grows away from the center block,

$$ r(k) = 1 + s\,|k|, $$

with $|k|$ the distance from the block relative to the largest along each axis. The
slope $s$ is the largest that leaves room for all points, found by bisection: discs as
wide as they can be, and exactly as many points as were asked for.

References:
    Cook, *Stochastic sampling in computer graphics*, 1986.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Grid: TypeAlias = NDArray[np.bool_]
STEPS = 10  # of the search: the slope is doubled, then bisected


def spread(rng: RandomState, block: Grid, points: int) -> tuple[Grid, float]:
    """Spread points over a grid around a block that is full.

    Args:
        rng: Where the order of the darts comes from.
        block: True in the block, a rectangle. Not changed.
        points: How many there are to be, the block included; no fewer than in it.

    Returns:
        True where the points are, and the slope of the radii.

    Examples:
        >>> block = np.zeros((9, 9), dtype=bool)
        >>> block[4, 4] = True
        >>> grid, slope = spread(RandomState(0), block, points=20)
        >>> int(grid.sum()), bool(grid[4, 4]), slope > 0
        (20, True, True)
    """
    order = rng.permutation(np.flatnonzero(~block))
    attempt = partial(throw, block, order, points)
    away = _distance(block)
    found, slope, failed = None, 0.0, np.inf
    for _ in range(STEPS):
        trial = min(2 * slope + 1, (slope + failed) / 2)
        grid = attempt(_radii(away, trial))
        if grid is None:
            failed = trial
        else:
            found, slope = grid, trial
    if found is None:
        found = attempt(np.ones(block.shape))
    assert found is not None  # discs that hold nothing but their middle block nothing
    return found, slope


def throw(
    block: Grid, order: NDArray[np.int_], points: int, radii: NDArray[np.float64]
) -> Grid | None:
    """Throw darts until there are enough points.

    Args:
        block: True where points are from the start.
        order: Flat indices of the grid outside the block.
        points: How many there are to be.
        radii: Of the disc around each point, at least 1.

    Returns:
        True where the points are; `None` if the discs left too little room.
    """
    reach = int(np.ceil(radii.max())) - 1
    width = block.shape[1] + 2 * reach
    free = np.pad(~block, reach).ravel()
    row, col = np.unravel_index(order, block.shape)
    cells = (row + reach) * width + col + reach
    squares = np.ceil(radii.ravel()[order] ** 2).astype(int)
    is_free = memoryview(free.data)  # reads a single value faster than an array does
    disc = cache(partial(_disc, width))
    stuck: list[int] = []
    missing = points - int(block.sum())
    for dart, (cell, square) in enumerate(
        zip(cells.tolist(), squares.tolist(), strict=True)
    ):
        if len(stuck) == missing:
            break
        if is_free[cell]:
            stuck.append(dart)
            free[cell + disc(square)] = False
    grid = block.copy()
    grid.ravel()[order[stuck]] = True
    return grid if len(stuck) == missing else None


def _disc(width: int, square: int) -> NDArray[np.int_]:
    """Return the steps to all within a radius, in a flat grid of so many columns.

    Steps are whole, so what is below a squared radius is below the next whole number.
    """
    reach = math.isqrt(square - 1)
    steps = np.arange(-reach, reach + 1)
    inside = np.add.outer(steps**2, steps**2) < square
    flat: NDArray[np.int_] = np.add.outer(width * steps, steps)[inside]
    return flat


def _distance(block: Grid) -> NDArray[np.float64]:
    rows, cols = np.nonzero(block)
    height, width = block.shape
    distance: NDArray[np.float64] = np.hypot.outer(
        _outside(height, rows), _outside(width, cols)
    )
    return distance


def _outside(size: int, inside: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return how far the samples of an axis are from those inside, at most 1."""
    places = np.arange(size)
    nearest = places.clip(inside.min(), inside.max())
    away: NDArray[np.float64] = np.abs(places - nearest).astype(float)
    away /= max(away.max(), 1)
    return away


def _radii(away: NDArray[np.float64], slope: float) -> NDArray[np.float64]:
    radii: NDArray[np.float64] = np.minimum(1 + slope * away, max(away.shape))
    return radii
