"""The pairs of center fraction and acceleration that masks are drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mri_example.errors import InputError


def check_pairs(fractions: Sequence[float], accelerations: Sequence[float]) -> None:
    """Make sure that masks can be drawn with these pairs.

    Raises:
        InputError: If the two differ in length or are empty, a fraction is not in
            (0, 1], or an acceleration is not finite or below 1.
    """
    if not 0 < len(fractions) == len(accelerations):
        raise InputError(
            f"center_fractions has {len(fractions)} entries and accelerations "
            f"{len(accelerations)}: give one acceleration for each fraction"
        )
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise InputError(
                f"a center fraction is {fraction}, but must be above 0 and at most 1"
            )
    for acceleration in accelerations:
        if not 1 <= acceleration < math.inf:
            raise InputError(
                f"an acceleration is {acceleration}, but must be finite and at least 1"
            )


def center(size: int, low: int) -> slice:
    """Return where the `low` central samples of an axis are.

    Examples:
        >>> center(9, 2)
        slice(4, 6, None)
    """
    pad = (size - low + 1) // 2
    return slice(pad, pad + low)
