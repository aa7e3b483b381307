"""One image of all coils through sensitivity maps: the option `--model.sensitivity`."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example.cli import main
from mri_example.data.simulate import Simulation, coil_maps
from mri_example.errors import InputError
from mri_example.masks import Masks, undersample
from mri_example.models import IRIM2D, IRIM3D, build, describe, sensitivity
from mri_example.models.sensitivity import estimated_maps
from mri_example.physics import LikelihoodGradient, Measurement
from mri_example.training.checkpoints import load
from mri_example.transforms import channels_to_complex, complex_to_channels, fftc, ifftc
from tests.mri.test_multicoil import FAN, SIZE, head
from tests.mri.test_unusable_runs import sentence

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def problem(space: tuple[int, ...], coils: int, seed: int):
    """Return an image, the maps of its coils, and a mask with a full center."""
    torch.manual_seed(seed)
    slices = space[0] if len(space) == 3 else 1
    drawn = coil_maps(coils, (slices, *space[-2:]), np.random.default_rng(seed))
    maps = torch.from_numpy(drawn).reshape(1, coils, *space).to(torch.complex128)
    image = torch.randn(1, 1, *space, dtype=torch.complex128)
    mask, _ = Masks("equispaced", [0.3], [1.5])((1, 1, *space), seed=seed)
    return image, maps, mask.double()


@pytest.mark.parametrize("space", [(16, 18), (3, 16, 18)])
@given(st.integers(4, 8), st.integers(0, 99))
def test_the_gradient_of_sense_with_known_maps_leads_to_the_image(space, coils, seed):
    """By conjugate gradients, from fewer columns than pixels, without noise."""
    image, maps, mask = problem(space, coils, seed)
    assert mask.mean() < 0.8
    model = Measurement(mask, maps, dims=len(space))
    zero_filled = model.adjoint(model.forward(image[:, 0])).unsqueeze(1)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        of_channels = LikelihoodGradient()(
            complex_to_channels(x), zero_filled, mask, maps
        )
        return channels_to_complex(of_channels)

    x = torch.zeros_like(image)
    residual = -gradient(x)
    direction = residual
    for _ in range(300):
        moved = gradient(direction) + zero_filled  # the normal operator alone
        energy = residual.abs().square().sum()
        step = energy / (direction.conj() * moved).sum().real
        x, residual = x + step * direction, residual - step * moved
        direction = residual + residual.abs().square().sum() / energy * direction
        if residual.norm() < 1e-12 * zero_filled.norm():
            break
    assert gradient(x).norm() < 1e-9 * zero_filled.norm()
    assert (x - image).norm() < 1e-4 * image.norm()


@pytest.mark.parametrize("space", [(32, 30), (2, 32, 30)])
@given(st.integers(2, 8), st.integers(0, 99))
def test_maps_from_the_calibration_lines_are_those_of_the_coils(space, coils, seed):
    """For a smooth object; normalized everywhere, and of one phase at a pixel."""
    _, maps, mask = problem(space, coils, seed)
    y, x = torch.meshgrid(
        *(torch.linspace(-1, 1, n) for n in space[-2:]), indexing="ij"
    )
    disc = torch.exp(-2 * (x**2 + y**2)).expand(space).to(maps)
    measured = ifftc(undersample(fftc(maps * disc, 2), mask), 2)
    found = estimated_maps(measured, mask, "calibration")
    assert found.shape == maps.shape
    total = found.abs().square().sum(1)
    assert torch.allclose(total, torch.ones_like(total))
    overlap = (found.conj() * maps).sum(1).abs()
    assert overlap[..., 4:-4, 4:-4].min() > 0.98


@given(st.sampled_from([1e-7, 1e5]), st.integers(2, 4), st.booleans())
def test_a_reconstruction_has_one_image_and_the_scale_of_the_data(factor, coils, slab):
    kind, space = (IRIM3D, (3, 16, 16)) if slab else (IRIM2D, (16, 16))
    model = kind(8, 1, **FAN, sensitivity="calibration").double()
    images = torch.randn(2, coils, *space, dtype=torch.complex128)
    mask, _ = Masks("random", [0.4], [2])((1, 1, *space), seed=0)
    mask = mask.double()
    out = model(images, mask)
    assert out.shape == (2, 1, *space)
    assert torch.allclose(model(factor * images, mask) / factor, out, rtol=1e-6)
    again = build(describe(model))
    assert again.sensitivity == "calibration"
    out.abs().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_data_without_maps_are_refused(monkeypatch):
    model = IRIM3D(8, 1, **FAN, sensitivity="calibration")
    images = torch.randn(1, 2, 3, 16, 16, dtype=torch.complex64)
    everywhere = torch.ones(1, 1, 1, 1, 16)
    with pytest.raises(InputError, match="a single coil, which needs no maps"):
        model(images[:, :1], everywhere)
    with pytest.raises(InputError, match="tell slices apart, as in 3-D"):
        model(images, torch.ones(1, 1, 3, 1, 16))
    with pytest.raises(InputError, match=r"0 columns .* raise center_fractions"):
        model(images, torch.zeros(1, 1, 1, 1, 16))
    with pytest.raises(InputError, match="sensitivity is 'x', but can only be one of"):
        IRIM2D(8, 1, **FAN, sensitivity="x")
    monkeypatch.setattr(sensitivity, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"sigpy is not installed: `pip install sigpy`"
    ):
        IRIM2D(8, 1, **FAN, sensitivity="espirit")


def test_espirit_is_that_of_sigpy(monkeypatch):
    """Slice by slice, from a center as wide as what is measured without a gap."""
    seen = []

    class EspiritCalib:
        def __init__(self, kspace, calib_width, show_pbar):
            assert not show_pbar
            seen.append((kspace.shape, calib_width))
            self.maps = np.full_like(kspace, len(kspace) ** -0.5)

        def run(self):
            return self.maps

    monkeypatch.setattr(sensitivity, "find_spec", lambda _: True)
    app = SimpleNamespace(EspiritCalib=EspiritCalib)
    monkeypatch.setattr(sensitivity, "import_module", {"sigpy.mri.app": app}.get)
    columns = torch.zeros(16)
    columns[4:13] = 1
    images = torch.randn(2, 4, 3, 20, 16, dtype=torch.complex64)
    maps = estimated_maps(images, columns.view(1, 1, 1, 1, -1), "espirit")
    assert maps.shape == images.shape
    assert maps.equal(torch.full_like(images, 0.5))
    assert seen == [((4, 20, 16), 8)] * 6


def test_maps_that_are_zero_everywhere_are_refused(monkeypatch):
    """As sigpy returns them where few columns calibrate them; the image would be 0."""

    class EspiritCalib:
        def __init__(self, kspace, **_):
            self.maps = np.zeros_like(kspace)
            self.maps[0, 0, 0] = abs(kspace[0, 0, 0]) > 1

        def run(self):
            return self.maps

    monkeypatch.setattr(sensitivity, "find_spec", lambda _: True)
    app = SimpleNamespace(EspiritCalib=EspiritCalib)
    monkeypatch.setattr(sensitivity, "import_module", {"sigpy.mri.app": app}.get)
    kspace = torch.zeros(1, 2, 3, 16, 16, dtype=torch.complex64)
    kspace[..., 0, 0] = 2
    every = torch.ones(1, 1, 1, 1, 16)
    assert estimated_maps(ifftc(kspace), every, "espirit").any()
    kspace[:, :, 1] = 0
    with pytest.raises(InputError, match="no sensitivity anywhere in a slice, from 16"):
        estimated_maps(ifftc(kspace), every, "espirit")


@pytest.mark.parametrize("method", ["calibration", "espirit"])
def test_from_files_of_several_coils_to_scores(method, tmp_path):
    """Files of different numbers of coils, through fit, reconstruct and evaluate."""
    if method == "espirit":
        pytest.importorskip("sigpy")
    size = 24
    for split, several in {"train": (2, 3), "val": (4,), "test": (3,)}.items():
        for coils in several:
            path = tmp_path / f"data/multicoil_{split}/{coils}.h5"
            Simulation(size, coils=coils, noise=0.001).write(path, head(3), split)
    run, out, test = (
        tmp_path / "run",
        tmp_path / "out",
        tmp_path / "data/multicoil_test",
    )
    masks = ["--masks.center_fractions=[0.8]", "--masks.accelerations=[1.2]"]
    model = ["--model.channels=8", "--model.steps=1", "--model.hidden=[4]"]
    fit = [
        *("fit", f"--data.root={tmp_path / 'data'}", f"--output={run}"),
        *("--data.challenge=multicoil", "--data.batch_size=1"),
        *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        *(*masks, *model, "--model.strides=[1]", f"--model.sensitivity={method}"),
    ]
    assert main(fit) == 0
    assert load(run / "last.ckpt").sensitivity == method
    reconstruct = ["reconstruct", f"--data={test}", f"--output={out}", *masks]
    assert main([*reconstruct, f"--checkpoint={run / 'last.ckpt'}"]) == 0
    with h5py.File(out / "3.h5") as file:
        assert file["reconstruction"].shape == (3, size, size)
    scores = ["evaluate", f"--targets={test}", f"--reconstructions={out}"]
    assert main(scores) == 0


def test_fit_refuses_one_coil_and_3d_acquisitions(tmp_path, capsys):
    for challenge, coils in {"singlecoil": 1, "multicoil": 2}.items():
        for split in ("train", "val"):
            path = tmp_path / f"data/{challenge}_{split}/a.h5"
            Simulation(SIZE, coils=coils).write(path, head(), split)
    fit = [
        *("fit", f"--data.root={tmp_path / 'data'}", f"--output={tmp_path / 'run'}"),
        *("--model=IRIM3D", "--model.sensitivity=calibration", "--model.slab=2"),
    ]
    assert "a.h5 has a single coil, which needs no maps" in sentence(capsys, *fit)
    slices = np.ones((5, SIZE), np.float32)
    slices[::2, ::2] = 0
    np.save(tmp_path / "mask.npy", slices)
    encoded = [f"--masks.file={tmp_path / 'mask.npy'}", "--data.challenge=multicoil"]
    assert "tell slices apart, as in 3-D acquisitions" in sentence(
        capsys, *fit, *encoded
    )
    assert not (tmp_path / "run").exists()
