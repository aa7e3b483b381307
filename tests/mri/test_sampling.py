"""Masks are those of the fastMRI package, bit for bit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_example.errors import InputError
from mri_example.masks import PATTERNS, Masks, volume_seed

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "data/golden_fastmri.json").read_text()
)
patterns = st.sampled_from(sorted(PATTERNS))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_golden_masks(pattern) -> None:
    cases = [case for case in GOLDEN["masks"] if case["type"] == pattern]
    assert len(cases) == 18
    for case in cases:
        function = Masks(pattern, case["cf"], case["acc"])
        mask, low = function((1, 640, case["W"]), seed=volume_seed(case["fname"]))
        assert low == case["n_low"]
        assert mask.flatten().nonzero().flatten().tolist() == case["cols"]


@given(patterns, st.integers(16, 200), st.integers(0, 2**31), st.integers(2, 8))
def test_masks_broadcast_and_hold_the_center(pattern, cols, seed, acceleration) -> None:
    function = Masks(pattern, [0.08], [acceleration])
    mask, low = function((3, 7, 5, cols), seed=seed)
    assert mask.shape == (1, 1, 1, cols)
    pad = (cols - low + 1) // 2
    assert mask[..., pad : pad + low].all()
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.equal(function((7, cols), seed=seed)[0].view(1, 1, 1, cols))


@given(patterns)
def test_a_seed_leaves_the_global_random_state_alone(pattern) -> None:
    np.random.seed(1)
    expected = np.random.RandomState(1).rand(3)
    Masks(pattern, [0.08, 0.04], [4, 8])((9, 64), seed=3)
    assert (expected == np.random.rand(3)).all()


def test_fresh_masks_differ() -> None:
    function = Masks("random", [0.08], [4])
    assert not function((9, 256))[0].equal(function((9, 256))[0])


@pytest.mark.parametrize(
    ("pattern", "fractions", "accelerations", "message"),
    [
        ("spiral", [0.1], [4], "pattern is 'spiral', but can only be one of random"),
        ("random", [0.1], [4, 8], "has 1 entries and accelerations 2"),
        ("random", [], [], "has 0 entries"),
        ("random", [0.0], [4], "center fraction is 0.0"),
        ("random", [1.5], [4], "center fraction is 1.5"),
        ("random", [0.1], [0.5], "is 0.5, but must be finite and at least 1"),
        ("random", [0.1], [math.nan], "is nan, but must be finite"),
        ("random", [math.nan], [4], "center fraction is nan"),
        ("random", [0.5], [4], "of 4 allows: at most 0.25"),
    ],
)
def test_impossible_masks(pattern, fractions, accelerations, message) -> None:
    with pytest.raises(InputError, match=message):
        Masks(pattern, fractions, accelerations)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0,), "at least one column"),
        ((4, 0), "at least one column"),
        ((9, 5), "is 8, but 5 columns allow at most 5"),
    ],
)
def test_calls_that_have_no_mask(shape, message) -> None:
    with pytest.raises(InputError, match=message):
        Masks("equispaced", [0.08], [8])(shape, seed=0)


def test_a_center_that_leaves_no_columns_to_space() -> None:
    function = Masks("equispaced_fraction", [0.125], [8])
    with pytest.raises(InputError, match="8 central columns of 64 leave none"):
        function((9, 64), seed=0)
