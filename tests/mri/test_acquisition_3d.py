"""Slabs of a 3-D acquisition are undersampled along slices and columns."""

import pytest
import torch

from mri_example.data import Simulation, SliceDataset
from mri_example.errors import InputError
from mri_example.fourier import fftc
from mri_example.physics import LikelihoodGradient
from mri_example.sampling import PoissonMaskFunction, undersample
from mri_example.signal import complex_to_channels
from tests.tolerances import relative_error


@pytest.fixture
def folder(tmp_path):
    volume = torch.rand(10, 16, 16).numpy()
    Simulation(size=16).write(tmp_path / "a.h5", volume, "one")
    return tmp_path


def test_what_is_measured_of_a_slab_is_its_3d_kspace(folder) -> None:
    sample = SliceDataset(folder, PoissonMaskFunction([0.2], [3]), slab=8)[0]
    assert sample.mask.shape == (1, 8, 1, 16)
    expected = undersample(fftc(sample.image, dims=3), sample.mask)
    assert relative_error(fftc(sample.zero_filled, dims=3), expected) < 1e-6
    estimate = complex_to_channels(sample.image.unsqueeze(0))
    data = sample.zero_filled.unsqueeze(0), sample.mask.unsqueeze(0)
    gradient = LikelihoodGradient()(estimate, *data)
    assert gradient.norm() < 1e-5 * estimate.norm()


def test_single_slices_have_no_such_mask(folder) -> None:
    with pytest.raises(InputError, match="use slabs of slices"):
        SliceDataset(folder, PoissonMaskFunction([0.2], [3]))[0]
