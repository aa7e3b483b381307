"""Sensitivity maps: those of the simulation are found again, and errors say how."""

import numpy as np
import pytest
import torch

from mri_example.data.coils import coil_maps
from mri_example.errors import InputError
from mri_example.physics import Sense, fftc, sensitivity, sensitivity_maps
from mri_example.physics.bart import bart
from mri_example.physics.espirit import TOOLS, installed
from mri_example.sampling import MaskFunction, undersample


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


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("shape", "width"), [((40, 36), 24), ((14, 18, 16), 12)])
def test_maps_are_found_from_the_center(tool, shape, width) -> None:
    if tool not in installed():
        pytest.skip(f"{tool} is not installed")
    truth, inside, kspace = measured(shape)
    mask, _ = MaskFunction("random", [0.75], [1.2])((4, *shape), seed=0)
    maps = sensitivity_maps(undersample(kspace, mask), width, tool)
    assert maps.shape == kspace.shape
    assert maps.dtype == kspace.dtype
    overlap = (maps.conj() * truth).sum(dim=0).abs()[inside]
    assert overlap.mean() > 0.999  # the phase of a pixel is free
    assert overlap.min() > 0.98
    model = Sense(torch.ones(shape[-1]), maps, dims=len(shape))
    again = model.forward(model.adjoint(kspace))
    assert (again - kspace).norm() < 0.02 * kspace.norm()


def test_the_tool_that_is_there_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(sensitivity, "installed", lambda: ["bart"])
    monkeypatch.setitem(TOOLS, "bart", lambda kspace, width: width * kspace)
    kspace = torch.ones(2, 8, 8, dtype=torch.complex128)
    maps = sensitivity_maps(kspace, width=7)
    assert maps.equal(7 * kspace)


@pytest.mark.parametrize("tool", [None, "sigpy", "bart"])
def test_without_a_tool_the_error_says_how_to_get_one(monkeypatch, tool) -> None:
    monkeypatch.setattr(sensitivity, "installed", list)
    kspace = torch.ones(2, 8, 8, dtype=torch.complex64)
    with pytest.raises(InputError, match="`pip install sigpy` or `apt install bart`"):
        sensitivity_maps(kspace, width=8, tool=tool)


@pytest.mark.parametrize(
    ("kspace", "width", "tool", "message"),
    [
        (torch.ones(2, 8, 8), 8, None, "must be complex"),
        (torch.ones(8, 8) * 1j, 8, None, "must be complex"),
        (torch.ones(2, 8, 9) * 1j, 9, None, "at most the 8 of the shortest axis"),
        (torch.ones(2, 8, 8) * 1j, 6, None, "above the 6 samples of a kernel"),
        (torch.ones(2, 8, 8) * 1j, 8, "grappa", "can only be sigpy or bart"),
        (torch.ones(2, 8, 8) * torch.eye(8) * 1j, 8, None, "56 of the 8.*2 samples"),
    ],
)
def test_kspace_without_a_usable_center(kspace, width, tool, message) -> None:
    with pytest.raises(InputError, match=message):
        sensitivity_maps(kspace, width, tool)


@pytest.mark.skipif("bart" not in installed(), reason="BART is not installed")
def test_what_bart_says_is_passed_on() -> None:
    with pytest.raises(InputError, match=r"`bart nonsense .*failed"):
        bart("nonsense", np.ones((2, 2), dtype=np.complex64))
