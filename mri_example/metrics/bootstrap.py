"""How sure a mean over volumes is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np

from mri_example.metrics.scores import Scores

LEVEL, DRAWS, SEED = 0.95, 10_000, 0


@dataclass(frozen=True)
class Interval:
    """Where the mean over volumes is expected, from `low` to `high`."""

    low: Scores
    high: Scores


def bootstrap(
    scores: Iterable[Scores],
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval | None:
    """Return an interval of the mean over volumes, by drawing volumes again.

    As many volumes as there are, each any number of times, are drawn again and again;
    the interval holds the middle `level` of their means. With few volumes it is too
    narrow; it never is wider than from the lowest to the highest of them.

    Args:
        scores: One entry per volume.
        level: Share of the means within the interval.
        draws: How often volumes are drawn.
        seed: What the draws follow from.

    Returns:
        The interval of each metric, or `None` of fewer than two volumes: one alone
        tells nothing of others. NaN where a value is infinite.

    Examples:
        >>> scores = [Scores(0.1, 20.0, 0.5), Scores(0.3, 22.0, 0.5)]
        >>> interval = bootstrap(scores)
        >>> interval.low.psnr, interval.high.psnr, interval.low.ssim
        (20.0, 22.0, 0.5)
        >>> bootstrap(scores[:1]) is None
        True

    References:
        Efron, *Bootstrap methods: another look at the jackknife*, 1979.
    """
    table = np.array([astuple(one) for one in scores], dtype=np.float64)
    if len(table) < 2:
        return None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), draws)
    with np.errstate(invalid="ignore"):  # 0 * inf, a perfect PSNR that is not drawn
        means = weights @ table / len(table)
        tails = (1 - level) / 2
        low, high = np.quantile(means, (tails, 1 - tails), axis=0)
    return Interval(Scores(*low.tolist()), Scores(*high.tolist()))
