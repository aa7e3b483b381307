"""Intervals of a mean, by drawing volumes again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mri_example import metrics
from mri_example.metrics import METRICS, Scores, summarize

SCORES = st.builds(Scores, st.floats(0, 1), st.floats(0, 50), st.floats(0, 1))


@given(st.lists(SCORES, min_size=2, max_size=12))
def test_an_interval_is_the_same_again_and_holds_the_mean(scores):
    found = summarize(scores)
    assert found == summarize(scores)
    for metric in METRICS:
        values = [getattr(s, metric) for s in scores]
        low, mean, high = (
            getattr(part, metric)
            for part in (found.interval.low, found.mean, found.interval.high)
        )
        slack = 1e-9 * (1 + max(values))
        assert min(values) - slack <= low <= mean + slack
        assert mean - slack <= high <= max(values) + slack


def population(rng: np.random.Generator) -> list[Scores]:
    return [Scores(*([value] * 3)) for value in rng.normal(30, 4, 40)]


def test_an_interval_covers_the_mean_of_the_population(monkeypatch):
    monkeypatch.setattr(metrics, "DRAWS", 1000)
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        monkeypatch.setattr(metrics, "SEED", seed)
        found = summarize(population(rng))
        hits += found.interval.low.psnr <= 30 <= found.interval.high.psnr
    assert 0.90 <= hits / 200 <= 0.98


def test_an_interval_of_perfect_reconstructions():
    perfect = [Scores(0.0, float("inf"), 1.0)] * 3
    found = summarize(perfect)  # without a warning
    assert (found.interval.low.ssim, found.interval.high.nmse) == (1.0, 0.0)
    assert summarize(perfect[:1]).interval is None
