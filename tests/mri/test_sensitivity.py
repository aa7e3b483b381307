"""Sensitivity maps of sigpy: those of the simulation are found again."""

import numpy as np
import pytest
import torch

from mri_example.data.simulate import coil_maps
from mri_example.masks import Masks, undersample
from mri_example.models.sensitivity import estimated_maps
from mri_example.physics import Measurement
from mri_example.transforms import fftc, ifftc

ROWS, COLS = 40, 36


def test_maps_are_found_from_the_center() -> None:
    pytest.importorskip("sigpy")
    shape = (ROWS, COLS)
    volume = coil_maps(4, (1, *shape), np.random.default_rng(0))
    truth = torch.from_numpy(volume).view(4, *shape).to(torch.complex64)
    lines = [torch.linspace(-1, 1, n) for n in shape]
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    inside = grid.norm(dim=0) < 0.75
    image = torch.polar(inside * (1 + grid[-1] / 2), 2 * grid[-2])
    kspace = 3e-4 * fftc(truth * image)
    mask, _ = Masks("random", (0.75,), (1.2,))((1, 4, *shape), seed=0)
    zero_filled = ifftc(undersample(kspace, mask))
    (maps,) = estimated_maps(zero_filled, mask, "espirit")
    assert (maps.shape, maps.dtype) == (kspace.shape, kspace.dtype)
    overlap = (maps.conj() * truth).sum(dim=0).abs()[inside]
    assert overlap.mean() > 0.999  # the phase of a pixel is free
    assert overlap.min() > 0.98
    model = Measurement(torch.ones(COLS), maps)
    again = model.forward(model.adjoint(kspace))
    assert (again - kspace).norm() < 0.02 * kspace.norm()
