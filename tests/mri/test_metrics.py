"""Metrics are those of the fastMRI package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example.errors import InputError
from mri_example.metrics import METRICS, Scores, score, summarize

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "data/golden_fastmri.json").read_text()
)


@pytest.mark.parametrize("case", GOLDEN["metrics"], ids=["scale 1", "scale 1e-4"])
def test_golden_values(case) -> None:
    random = np.random.RandomState(case["seed"])
    scale = case["scale"]
    target = (random.rand(5, 64, 64) * scale).astype(np.float32)
    noise = 0.1 * scale * random.randn(5, 64, 64)
    estimate = (target + noise).astype(np.float32).astype(np.float64)
    target = target.astype(np.float64)
    found = score(target, estimate)
    for metric in METRICS:
        assert getattr(found, metric) == pytest.approx(case[metric], rel=1e-6)
    mse = target.max() ** 2 / 10 ** (found.psnr / 10)
    assert mse == pytest.approx(case["mse"], rel=1e-6)
    doubled = score(target, estimate, 2 * target.max()).ssim
    assert doubled == pytest.approx(case["ssim_maxval_x2"], rel=1e-6)


@given(st.integers(0, 2**31), st.floats(1e-6, 1e3))
def test_scores_do_not_depend_on_the_unit(seed, unit) -> None:
    random = np.random.RandomState(seed)
    target, estimate = random.rand(2, 9, 9), random.rand(2, 9, 9)
    a, b = score(target, estimate), score(unit * target, unit * estimate)
    assert (a.nmse, a.psnr, a.ssim) == pytest.approx((b.nmse, b.psnr, b.ssim), rel=1e-9)


def test_a_perfect_reconstruction() -> None:
    target = np.random.RandomState(0).rand(2, 9, 9)
    perfect = score(target, target)
    assert perfect == Scores(0.0, float("inf"), 1.0)
    summary = summarize([perfect, perfect])  # without a warning
    assert summary.mean == perfect
    assert np.isnan(summary.two_standard_deviations.psnr)


def test_tensors_are_as_good_as_arrays() -> None:
    target, estimate = np.random.RandomState(0).rand(2, 2, 9, 9)
    tensors = torch.from_numpy(target), torch.from_numpy(estimate).requires_grad_()
    assert score(*tensors) == score(target, estimate)


def test_both_are_cropped_to_the_width_of_the_target() -> None:
    random = np.random.RandomState(0)
    target, estimate = random.rand(2, 12, 8), random.rand(2, 14, 10)
    expected = score(target[:, 2:10], estimate[:, 3:11, 1:9])
    assert score(target, estimate) == expected


def test_summaries() -> None:
    scores = [Scores(0.1, 20.0, 0.5), Scores(0.3, 22.0, 0.7)]
    summary = summarize(scores)
    assert summary.mean.psnr == pytest.approx(21)
    assert summary.two_standard_deviations.psnr == pytest.approx(2 * np.sqrt(2))
    assert summarize(scores[:1]).two_standard_deviations is None
    with pytest.raises(InputError, match="no volume to summarize"):
        summarize([])


@pytest.mark.parametrize(
    ("target", "estimate", "message"),
    [
        (np.ones((9, 9)), np.ones((9, 9)), "must be \\(slices, rows, cols\\)"),
        (np.ones((2, 9, 9)), np.ones((3, 9, 9)), "as many slices"),
        (np.ones((0, 9, 9)), np.ones((0, 9, 9)), "none of them 0"),
        (np.ones((1, 9, 9)), np.full((1, 9, 9), np.nan), "not finite"),
        (np.ones((1, 5, 5)), np.ones((1, 5, 5)), "SSIM needs at least 7"),
        (np.ones((1, 9, 9)), np.ones((1, 8, 9)), "must hold a square"),
        (np.zeros((1, 9, 9)), np.ones((1, 9, 9)), "zero everywhere"),
        (-np.ones((1, 9, 9)), np.ones((1, 9, 9)), "positive nowhere"),
    ],
)
def test_volumes_that_cannot_be_compared(target, estimate, message) -> None:
    with pytest.raises(InputError, match=message):
        score(target, estimate)
