"""Sensitivity maps: those of the simulation are found again, and errors say how."""

import numpy as np
import pytest
import torch

from mri_example import physics
from mri_example.data.simulate import coil_maps
from mri_example.errors import InputError
from mri_example.masks import MaskFunction, undersample
from mri_example.physics import Sense, fftc, sensitivity_maps


def measured(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return true maps, where there is something to see, and full k-space."""
    slices = shape[0] if len(shape) == 3 else 1
    volume = coil_maps(4, (slices, *shape[-2:]), np.random.default_rng(0))
    maps = torch.from_numpy(volume).view(4, *shape).to(torch.complex64)
    lines = [torch.linspace(-1, 1, n) for n in shape]
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    inside = grid.norm(dim=0) < 0.75
    image = torch.polar(inside * (1 + grid[-1] / 2), 2 * grid[-2])
    return maps, inside, 3e-4 * fftc(maps * image, dims=len(shape))


@pytest.mark.parametrize(("shape", "width"), [((40, 36), 24), ((14, 18, 16), 12)])
def test_maps_are_found_from_the_center(shape, width) -> None:
    pytest.importorskip("sigpy")
    truth, inside, kspace = measured(shape)
    mask, _ = MaskFunction("random", [0.75], [1.2])((4, *shape), seed=0)
    maps = sensitivity_maps(undersample(kspace, mask), width)
    assert maps.shape == kspace.shape
    assert maps.dtype == kspace.dtype
    overlap = (maps.conj() * truth).sum(dim=0).abs()[inside]
    assert overlap.mean() > 0.999  # the phase of a pixel is free
    assert overlap.min() > 0.98
    model = Sense(torch.ones(shape[-1]), maps, dims=len(shape))
    again = model.forward(model.adjoint(kspace))
    assert (again - kspace).norm() < 0.02 * kspace.norm()


def test_without_sigpy_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(physics, "find_spec", lambda _: None)
    kspace = torch.ones(2, 8, 8, dtype=torch.complex64)
    with pytest.raises(InputError, match="`pip install sigpy`"):
        sensitivity_maps(kspace, width=8)


@pytest.mark.parametrize(
    ("kspace", "width", "message"),
    [
        (torch.ones(2, 8, 8), 8, "must be complex"),
        (torch.ones(8, 8) * 1j, 8, "must be complex"),
        (torch.ones(2, 8, 9) * 1j, 9, "at most the 8 of the shortest axis"),
        (torch.ones(2, 8, 8) * 1j, 6, "above the 6 samples of a kernel"),
        (torch.ones(2, 8, 8) * torch.eye(8) * 1j, 8, "56 of the 8.*2 samples"),
    ],
)
def test_kspace_without_a_usable_center(kspace, width, message) -> None:
    with pytest.raises(InputError, match=message):
        sensitivity_maps(kspace, width)
