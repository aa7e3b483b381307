"""Poisson-disc masks of sigpy: a full center, the acceleration, and seeds."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example import masks
from mri_example.cli import main
from mri_example.errors import InputError
from mri_example.masks import Masks
from tests.mri import sigpy_stub

sizes = st.integers(16, 48)
seeds = st.integers(0, 2**31)


@pytest.fixture(autouse=True, scope="module")
def sigpy():
    with pytest.MonkeyPatch.context() as patch:
        sigpy_stub.install(patch)
        yield


@given(sizes, sizes, st.floats(1.5, 6), seeds)
def test_masks_meet_the_acceleration_and_hold_the_center(slices, cols, a, seed) -> None:
    function = Masks("poisson", [0.1], [a])
    mask, low = function((5, slices, 7, cols), seed=seed)
    assert mask.shape == (1, slices, 1, cols)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert abs(slices * cols / mask.sum().item() - a) <= 0.1
    assert low == max(1, round(0.1 * cols))
    middle = mask[0, slices // 2, 0]
    assert middle[cols // 2 - (low - 1) // 2 : cols // 2 + low // 2].all()


@given(sizes, sizes, seeds)
def test_masks_follow_from_the_seed_alone(slices, cols, seed) -> None:
    function = Masks("poisson", [0.1, 0.05], [3, 5])
    mask, low = function((1, slices, 7, cols), seed=seed)
    again, low_again = function((1, 2, 3, slices, 1, cols), seed=seed)
    assert mask.flatten().equal(again.flatten())
    assert low == low_again
    assert again.shape == (1, 1, 1, slices, 1, cols)
    assert not mask.equal(function((1, slices, 7, cols), seed=(seed, 1))[0])


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(1)
    expected = np.random.RandomState(1).rand(3)
    torch_state = torch.random.get_rng_state()
    Masks("poisson", [0.1], [4])((1, 20, 3, 30), seed=3)
    assert (expected == np.random.rand(3)).all()
    assert torch_state.equal(torch.random.get_rng_state())


def test_fresh_masks_differ_and_everything_can_be_measured() -> None:
    function = Masks("poisson", [0.08], [4])
    assert not function((1, 32, 1, 32))[0].equal(function((1, 32, 1, 32))[0])
    assert Masks("poisson", [0.08], [1])((1, 9, 1, 8))[0].all()


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
        Masks("poisson", fractions, accelerations)


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
        Masks("poisson", [0.5], [8])(shape, seed=0)


def test_what_sigpy_cannot_draw_is_said(monkeypatch) -> None:
    def failing(*_, **__):
        np.random.seed(0)
        raise ValueError("Cannot generate mask to satisfy accel=5.")

    monkeypatch.setattr(sys.modules["sigpy.mri"], "poisson", failing)
    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    with pytest.raises(InputError, match=r"12 slices and 20 columns .* of 5 \(Cannot"):
        Masks("poisson", [0.1], [5])((1, 12, 4, 20), seed=0)
    assert np.random.rand() == expected


def test_without_sigpy_the_error_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(masks, "find_spec", lambda _: None)
    arguments = ["--data=x", "--output=y", "--masks.pattern=poisson"]
    assert main(["reconstruct", *arguments]) == 2
    assert "`pip install sigpy`" in capsys.readouterr().err


def test_the_configuration_knows_the_pattern() -> None:
    built = Masks("poisson", (0.1,), (4,))
    mask, _ = built((1, 12, 5, 16), seed=2)
    expected, _ = Masks("poisson", [0.1], [4])((1, 12, 5, 16), seed=2)
    assert mask.equal(expected)
