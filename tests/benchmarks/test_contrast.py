"""Random contrast: what of an image it keeps, and that samples stay consistent."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduce.contrast import (
    LARGEST,
    ContrastData,
    flip_and_recontrast,
    recontrast,
)
from mri_example.data.dataset import SliceDataset
from mri_example.data.simulate import Simulation, simulate_volumes
from mri_example.masks import Masks
from mri_example.models import IRIM2D
from mri_example.transforms import fftc, ifftc, root_sum_of_squares
from tests.tolerances import EQUAL

SEEDS = st.integers(0, 999)
ATOL = EQUAL[torch.float32]


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Return a complex image."""
    return torch.randn(*shape, dtype=torch.complex64, generator=seeded(seed))


def test_it_multiplies_by_a_function_of_the_magnitude() -> None:
    seed = 3
    image = drawn(seed, 1, 16, 16)
    image[0, :, 8:] = image[0, :, :8].flip(0) * 1j  # the same magnitudes elsewhere
    factor = recontrast(image, seeded(seed)) / image
    assert torch.allclose(factor[0, :, 8:], factor[0, :, :8].flip(0), atol=ATOL)


@given(SEEDS, st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_phases_and_the_ratios_of_coils_stay(seed, coils, rows, cols) -> None:
    image = drawn(seed, coils, rows, cols)
    factor = recontrast(image, seeded(seed)) / image
    assert torch.allclose(factor.imag, torch.zeros(()), atol=1e-4)
    assert torch.allclose(factor, factor[:1].expand_as(factor), rtol=1e-4)
    assert factor.real.min() >= 1 / LARGEST - 1e-4
    assert factor.real.max() <= LARGEST + 1e-4


@given(SEEDS, st.floats(1e-6, 1e6))
def test_the_scale_of_the_data_does_not_matter(seed, scale) -> None:
    image = drawn(seed, 2, 8, 8)
    changed = recontrast(scale * image, seeded(seed)) / scale
    assert torch.allclose(changed, recontrast(image, seeded(seed)), atol=1e-4)


@given(SEEDS, st.sampled_from([(), (-1,), (-2,), (-2, -1)]))
def test_it_does_not_matter_whether_an_image_is_flipped_before(seed, axes) -> None:
    image = drawn(seed, 2, 6, 7)
    after = recontrast(image, seeded(seed)).flip(axes)
    assert torch.equal(recontrast(image.flip(axes), seeded(seed)), after)


def test_an_empty_image_stays_empty() -> None:
    assert not recontrast(torch.zeros(1, 4, 4, dtype=torch.cfloat), seeded(0)).any()


def test_seeds_decide() -> None:
    image = drawn(0, 1, 8, 8)
    first, again, other = (flip_and_recontrast(image, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first.abs(), other.abs())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a data root of one small volume."""
    folder = tmp_path_factory.mktemp("data")
    volume = drawn(0, 3, 16, 16).abs().numpy() + 0.5
    simulate_volumes([("a", volume)], folder / "singlecoil_train", Simulation(size=16))
    return folder


def test_samples_are_undersampled_after_the_contrast_has_changed(root) -> None:
    """The mask is of columns, and the measured k-space that of the changed image."""
    model = IRIM2D(8, 1, (4,), (1,))
    masks = Masks("random", (0.2,), (2,))
    slices = ContrastData(root, masks, seed=5).training_slices(model)
    plain = SliceDataset(root / "singlecoil_train", masks, epoch=0, seed=5)
    assert len(slices) == len(plain) == 3
    for sample, before in zip(slices, plain, strict=True):
        assert torch.equal(sample.mask, before.mask)
        assert sample.mask.shape == (1, 1, 16)
        kspace = fftc(sample.zero_filled)
        full = fftc(sample.image)
        scale = full.abs().max()
        assert torch.allclose(kspace / scale, sample.mask * full / scale, atol=1e-5)
        again = ifftc(sample.mask * full)
        assert torch.allclose(again / scale, sample.zero_filled / scale, atol=1e-5)
        peak = float(root_sum_of_squares(before.image, dim=0).max())
        ratio = float(root_sum_of_squares(sample.image, dim=0).max()) / peak
        assert abs(math.log(ratio)) <= math.log(LARGEST) + 1e-4
