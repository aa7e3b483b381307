"""Poisson-disc masks: a full center, exact counts, and nothing too close."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import RandomState

from mri_example.errors import InputError
from mri_example.sampling import PoissonMaskFunction, darts
from mri_example.sampling.darts import spread, throw
from mri_example.sampling.pairs import center
from mri_example.training import MaskConfig

sizes = st.integers(8, 48)
seeds = st.integers(0, 2**31)
accelerations = st.floats(1, 12)


@given(sizes, sizes, accelerations, seeds)
def test_masks_meet_the_acceleration_and_hold_the_center(slices, cols, a, seed) -> None:
    function = PoissonMaskFunction([0.1], [a])
    mask, low = function((5, slices, 7, cols), seed=seed)
    assert mask.shape == (1, slices, 1, cols)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert abs(mask.sum().item() - slices * cols / a) <= 0.5
    assert low == max(1, round(0.1 * cols))
    rows = center(slices, max(1, round(0.1 * slices)))
    assert mask[0, rows, 0, center(cols, low)].all()


@given(sizes, sizes, seeds)
def test_masks_follow_from_the_seed_alone(slices, cols, seed) -> None:
    function = PoissonMaskFunction([0.1, 0.05], [3, 5])
    mask, low = function((1, slices, 7, cols), seed=seed)
    again, low_again = function((1, 2, 3, slices, 1, cols), offset=1, seed=seed)
    assert mask.flatten().equal(again.flatten())
    assert low == low_again
    assert again.shape == (1, 1, 1, slices, 1, cols)
    assert not mask.equal(function((1, slices, 7, cols), seed=(seed, 1))[0])


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(1)
    expected = np.random.RandomState(1).rand(3)
    torch_state = torch.random.get_rng_state()
    PoissonMaskFunction([0.1], [4])((1, 20, 3, 30), seed=3)
    assert (expected == np.random.rand(3)).all()
    assert torch_state.equal(torch.random.get_rng_state())


def test_fresh_masks_differ() -> None:
    function = PoissonMaskFunction([0.08], [4])
    assert not function((1, 32, 1, 32))[0].equal(function((1, 32, 1, 32))[0])


@given(sizes, sizes, st.floats(1, 5), seeds)
def test_no_two_points_are_closer_than_their_radii(rows, cols, radius, seed) -> None:
    rng = RandomState(seed)
    block = np.zeros((rows, cols), dtype=bool)
    radii = rng.uniform(1, radius, block.shape)
    order = rng.permutation(block.size)
    grid = throw(block, order, 4, radii)
    assert grid is not None
    assert grid.sum() == 4
    y, x = np.nonzero(grid)
    apart = np.hypot(np.subtract.outer(y, y), np.subtract.outer(x, x))
    np.fill_diagonal(apart, np.inf)
    least = np.minimum.outer(radii[grid], radii[grid])
    assert (apart >= least).all()


def test_density_falls_away_from_the_center() -> None:
    mask, _ = PoissonMaskFunction([0.04], [8])((1, 128, 1, 128), seed=0)
    y, x = np.ogrid[-64:64, -64:64]
    distance = np.hypot(y, x)
    edges = [8, 16, 32, 48, 64]
    rings = [
        mask.squeeze().numpy()[(distance >= a) & (distance < b)].mean()
        for a, b in pairwise(edges)
    ]
    assert rings == sorted(rings, reverse=True)
    assert rings[0] > 3 * rings[-1]


def test_discs_are_as_wide_as_there_is_room_for() -> None:
    block = np.zeros((40, 40), dtype=bool)
    block[20, 20] = True
    slopes = [spread(RandomState(0), block, n)[1] for n in (1600, 800, 400, 200, 100)]
    assert slopes[0] < 1e-2
    assert slopes == sorted(slopes)


@pytest.mark.parametrize("acceleration", [1, 2, 4, 8])
def test_a_mask_of_a_usual_size_takes_few_attempts(acceleration, monkeypatch) -> None:
    attempts = []

    def counted(*arguments):
        attempts.append(throw(*arguments))
        return attempts[-1]

    monkeypatch.setattr(darts, "throw", counted)
    PoissonMaskFunction([0.04], [acceleration])((1, 64, 320, 320), seed=0)
    assert 1 <= len(attempts) <= darts.STEPS + 1


@pytest.mark.parametrize(
    ("fractions", "accelerations", "message"),
    [
        ([0.1], [4, 8], "has 1 entries and accelerations 2"),
        ([0.0], [4], "center fraction is 0.0"),
        ([0.1], [0.5], "is 0.5, but must be finite and at least 1"),
    ],
)
def test_impossible_masks(fractions, accelerations, message) -> None:
    with pytest.raises(InputError, match=message):
        PoissonMaskFunction(fractions, accelerations)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 7, 9), "for the volumes of 3-D acquisitions"),
        ((1, 0, 7, 9), "for the volumes of 3-D acquisitions"),
        ((1, 10, 7, 10), r"center of 25 of 10 x 10 samples .* at most 4,"),
    ],
)
def test_calls_that_have_no_mask(shape, message) -> None:
    with pytest.raises(InputError, match=message):
        PoissonMaskFunction([0.5], [8])(shape, seed=0)


def test_the_configuration_knows_the_pattern() -> None:
    built = MaskConfig("poisson", (0.1,), (4,)).build()
    mask, _ = built((1, 12, 5, 16), seed=2)
    expected, _ = PoissonMaskFunction([0.1], [4])((1, 12, 5, 16), seed=2)
    assert mask.equal(expected)
