"""Every model: its size, its laws, and that its configuration comes back."""

import copy
import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduce.rim import RIM
from benchmarks.reproduce.unet import UNet
from mri_example.errors import InputError
from mri_example.losses import dissimilarity, normalized_l1, subsampled_nmse
from mri_example.masks import undersample
from mri_example.metrics import score
from mri_example.models import (
    IRIM2D,
    IRIM3D,
    MODELS,
    ChallengeIRIM,
    build,
    describe,
)
from mri_example.transforms import fftc, ifftc

FAN = {"hidden": (4, 4), "strides": (1, 2)}
SMALL = {
    "irim": IRIM2D(8, 2, **FAN),
    "irim, two coils": IRIM2D(8, 2, **FAN, coils=2),
    "irim 3d": IRIM3D(8, 2, **FAN, slab=3),
    "challenge": ChallengeIRIM(24, 1, **FAN),
    "rim": RIM(8, 3),
    "unet": UNet(4, 2),
}


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def problem(config, rows: int = 12, cols: int = 11):
    coils = config.coils or 1
    space = (rows, cols) if config.slab is None else (config.slab, rows, cols)
    image = torch.randn(2, coils, *space, dtype=torch.complex128)
    mask = (torch.rand(2, *(1,) * len(space), cols) < 0.5).double()
    return ifftc(undersample(fftc(image), mask)), mask


@pytest.mark.parametrize(
    ("options", "irim", "read_out"),
    [
        ({}, 275_206_144, 41_408),
        ({"channels": 96, "coils": 15, "multiplicity": 1}, 329_577_472, 92_832),
    ],
)
def test_the_challenge_models_have_the_size_of_the_authors(options, irim, read_out):
    with torch.device("meta"):
        model = ChallengeIRIM(**options)
    assert (size(model.irim), size(model.read_out)) == (irim, read_out)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_a_reconstruction_has_the_size_and_scale_of_the_data(config):
    model = copy.deepcopy(config).double()
    zero_filled, mask = problem(config)
    out = model(zero_filled, mask)
    assert out.shape[0] == 2
    assert out.shape[1] in (1, zero_filled.shape[1])
    assert out.shape[2:] == zero_filled.shape[2:]
    smaller = 1e5 * model(1e-5 * zero_filled, mask)
    assert (smaller - out).abs().max() < 1e-4 * out.abs().max()


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_every_parameter_learns(config):
    model = copy.deepcopy(config).double()
    zero_filled, mask = problem(config)
    loss = sum(out.abs().square().sum() for out in model.trajectory(zero_filled, mask))
    loss.backward()
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not still


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_every_model_learns_under_autocast(config, dtype):
    torch.manual_seed(0)
    model = copy.deepcopy(config).float()
    zero_filled, mask = problem(config)
    inputs = zero_filled.to(torch.complex64), mask.float()
    with torch.autocast("cpu", dtype):
        estimates = model.trajectory(*inputs)
        losses = [normalized_l1(e, inputs[0]) for e in estimates]
    torch.stack(losses).mean().backward()
    assert {e.dtype for e in estimates} == {torch.complex64}
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_a_configuration_comes_back_from_json(config):
    again = build(json.loads(json.dumps(describe(config))), type(config))
    assert type(again) is type(config)
    assert describe(again) == describe(config)
    again.load_state_dict(config.state_dict())


def test_configurations_that_cannot_be_built():
    with pytest.raises(InputError, match="can only be one of IRIM2D"):
        build({"model": "VarNet"})
    with pytest.raises(InputError, match="need at least 60"):
        IRIM2D(32, coils=15)
    assert set(MODELS) == {"IRIM2D", "IRIM3D", "ChallengeIRIM"}


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 1, 3, 8, 8)])
def test_data_of_other_coils_or_axes_are_named(shape):
    model = SMALL["irim"]
    with pytest.raises(ValueError, match=r"takes \(batch, 1 coils, 2 spatial axes\)"):
        model(torch.zeros(shape, dtype=torch.complex64), torch.ones(1))


@given(st.integers(7, 13), st.integers(1, 3), st.floats(1e-7, 1e3))
def test_the_loss_ssim_is_the_metric(width, slices, scale):
    target = scale * torch.rand(slices, width + 2, width, dtype=torch.float64)
    estimate = (target + 0.3 * scale * torch.rand_like(target)).unsqueeze(1)
    loss = dissimilarity
    rows = slice(1, width + 1)  # the metric compares the square of the width
    maximum = target[:, rows].max().expand(slices)
    found = loss(estimate[..., rows, :], target.unsqueeze(1)[..., rows, :], maximum)
    expected = 1 - score(target, estimate[:, 0]).ssim
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_losses_compare_one_image_for_several_coils_by_magnitude():
    coils = torch.randn(2, 3, 9, 9, dtype=torch.complex128)
    combined = torch.linalg.vector_norm(coils, dim=1, keepdim=True) * 1j
    for loss in (partial(subsampled_nmse, fraction=1.0), normalized_l1):
        assert loss(combined, coils).item() < 1e-15
        assert loss(1.1 * combined, coils).item() > 1e-3
    peak = combined.abs().amax((1, 2, 3))
    assert dissimilarity(combined, coils, peak).item() < 1e-12


def test_the_l1_loss_is_relative():
    target = (
        torch.rand(3, 1, 5, 5, dtype=torch.float64)
        * torch.tensor([1, 1e-6, 1e3])[:, None, None, None]
    )
    assert normalized_l1(0.75 * target, target).item() == pytest.approx(0.25)
    assert normalized_l1(0 * target, 0 * target).item() == 0


def test_ssim_of_less_than_a_window_is_named():
    image = torch.ones(1, 1, 9, 6)
    with pytest.raises(ValueError, match="are 9 by 6, but SSIM needs at least 7"):
        dissimilarity(image, image, torch.ones(1))


def test_three_dimensions_leave_the_slices_as_fine_as_they_are():
    model = SMALL["irim 3d"]
    strides = {module.stride for module in model.modules() if hasattr(module, "spread")}
    assert strides == {(1, 1, 1), (1, 2, 2)}
    assert model.slab == 3
