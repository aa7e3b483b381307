"""Intervals of a mean, by drawing volumes again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mri_example.metrics import METRICS, Scores, bootstrap, summarize

SCORES = st.builds(Scores, st.floats(0, 1), st.floats(0, 50), st.floats(0, 1))


@given(st.lists(SCORES, min_size=2, max_size=12), st.integers(0, 99))
def test_an_interval_follows_from_its_seed_and_holds_the_mean(scores, seed):
    found = bootstrap(scores, seed=seed, draws=500)
    assert found == bootstrap(scores, seed=seed, draws=500)
    mean = summarize(scores).mean
    for metric in METRICS:
        values = [getattr(s, metric) for s in scores]
        low, high = (getattr(side, metric) for side in (found.low, found.high))
        slack = 1e-9 * (1 + max(values))
        assert min(values) - slack <= low <= getattr(mean, metric) + slack
        assert getattr(mean, metric) - slack <= high <= max(values) + slack


def test_an_interval_covers_the_mean_of_the_population():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        volumes = [Scores(*([value] * 3)) for value in rng.normal(30, 4, 40)]
        found = bootstrap(volumes, seed=seed, draws=1000)
        hits += found.low.psnr <= 30 <= found.high.psnr
    assert 0.90 <= hits / 200 <= 0.98


def test_a_surer_interval_is_wider():
    rng = np.random.default_rng(0)
    volumes = [Scores(*([value] * 3)) for value in rng.normal(30, 4, 40)]
    widths = []
    for level in (0.5, 0.8, 0.95, 0.99):
        found = bootstrap(volumes, draws=1000, level=level)
        widths.append(found.high.psnr - found.low.psnr)
    assert widths == sorted(set(widths))


def test_an_interval_of_perfect_reconstructions():
    perfect = [Scores(0.0, float("inf"), 1.0)] * 3
    found = bootstrap(perfect)  # without a warning
    assert (found.low.ssim, found.high.nmse) == (1.0, 0.0)
    assert bootstrap(perfect[:1]) is None
