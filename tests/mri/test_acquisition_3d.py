"""3-D acquisitions are undersampled along slices and columns, as whole volumes."""

import copy

import h5py
import numpy as np
import pytest
import torch

from benchmarks.reproduce.unet import UNet
from mri_example.cli import main
from mri_example.data.dataset import SliceDataset
from mri_example.data.files import read_reconstruction
from mri_example.data.simulate import Simulation
from mri_example.errors import InputError
from mri_example.masks import Masks, undersample, volume_seed
from mri_example.models import IRIM3D
from mri_example.physics import LikelihoodGradient
from mri_example.reconstruct import reconstruct
from mri_example.training.checkpoints import load
from mri_example.training.data import SliceData
from mri_example.transforms import (
    center_crop,
    complex_to_channels,
    fftc,
    ifftc,
    root_sum_of_squares,
)
from tests.mri import sigpy_stub
from tests.mri.runs import train
from tests.tolerances import relative_error

SLICES, SIZE = 10, 16
EVERYTHING = Masks("random", [1.0], [1])
THIN = IRIM3D(8, 1, hidden=(4,), strides=(1,), slab=4)


def masks() -> Masks:
    return Masks("poisson", [0.2], [3])


@pytest.fixture(autouse=True)
def sigpy(monkeypatch):
    sigpy_stub.install(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    volume = np.random.default_rng(0).random((SLICES, SIZE, SIZE), dtype=np.float32)
    Simulation(size=SIZE).write(tmp_path / "data/a.h5", volume, "one")
    return tmp_path / "data"


def measured(folder) -> torch.Tensor:
    """Return the zero-filled image of the whole volume."""
    slices = torch.stack([s.image[0] for s in SliceDataset(folder, EVERYTHING)])
    shape = (1, SLICES, SIZE, SIZE)
    mask, _ = masks()(shape, seed=volume_seed("a.h5"))
    return ifftc(undersample(fftc(slices.view(shape), 3), mask), 3)[0]


@pytest.mark.parametrize(("epoch", "depth"), [(0, 8), (None, SLICES)])
def test_what_is_measured_is_3d_kspace(folder, epoch, depth) -> None:
    """In training that of slabs, which stand for volumes; otherwise of volumes."""
    dataset = SliceDataset(folder, masks(), slab=8, epoch=epoch)
    assert len(dataset) == (3 if epoch == 0 else 1)
    sample = dataset[0]
    assert sample.mask.shape == (1, depth, 1, SIZE)
    expected = undersample(fftc(sample.image, dims=3), sample.mask)
    assert relative_error(fftc(sample.zero_filled, dims=3), expected) < 1e-6
    estimate = complex_to_channels(sample.image.unsqueeze(0))
    data = sample.zero_filled.unsqueeze(0), sample.mask.unsqueeze(0)
    gradient = LikelihoodGradient()(estimate, *data)
    assert gradient.norm() < 1e-5 * estimate.norm()


@pytest.mark.parametrize("slab", [1, 4, 99])
def test_a_volume_is_measured_once_however_thin_the_slabs(folder, slab) -> None:
    """Slabs that overlap, each with a mask of its own, would be told of more."""
    (sample,) = SliceDataset(folder, masks(), slab=slab)
    assert sample.mask.mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert torch.allclose(sample.zero_filled[0], measured(folder), atol=1e-9)


def test_validation_is_on_whole_volumes(folder, tmp_path) -> None:
    for split in ("train", "val"):
        (tmp_path / f"singlecoil_{split}").symlink_to(folder)
    data = SliceData(tmp_path, Masks("poisson", (0.2,), (3,)))
    data.check(THIN)
    assert [s.image.shape[1] for s in data.validation] == [SLICES]
    assert {s.image.shape[1] for s in data.training} == {THIN.slab}


def test_the_command_line_reconstructs_volumes(folder, tmp_path) -> None:
    np.save(tmp_path / "own.npy", masks()((1, SLICES, 1, SIZE), seed=0)[0].numpy())
    ways = {
        "poisson": "--masks={pattern: poisson, center_fractions: [0.2], "
        "accelerations: [3]}",
        "file": f"--masks.file={tmp_path / 'own.npy'}",
    }
    for name, option in ways.items():
        out = tmp_path / name
        assert main(["reconstruct", f"--data={folder}", f"--output={out}", option]) == 0
        with h5py.File(out / "a.h5") as file:
            assert file.attrs["acceleration"] == 3
    found = read_reconstruction(tmp_path / "poisson/a.h5")
    assert np.allclose(found, measured(folder).abs(), rtol=1e-4, atol=1e-9)


def test_a_model_of_slabs_is_given_the_volume(folder, tmp_path) -> None:
    method, shapes = copy.deepcopy(THIN), []
    method.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[2]))
    reconstruct(method, folder, tmp_path / "out", masks())
    assert shapes == [SLICES]
    with pytest.raises(InputError, match="slab is 2, but the masks tell slices apart"):
        reconstruct(method, folder, tmp_path / "no", masks(), slab=2)


def test_single_slices_have_no_such_mask(folder, tmp_path) -> None:
    with pytest.raises(InputError, match="use slabs of slices"):
        SliceDataset(folder, masks())[0]
    with pytest.raises(InputError, match="use slabs of slices"):
        reconstruct(UNet(2, 2), folder, tmp_path / "out", masks())


@pytest.mark.parametrize("coils", [3, None])
def test_several_coils_of_a_3d_acquisition(tmp_path, coils) -> None:
    """Coils share the mask of slices and columns, in training and afterwards."""
    volume = np.random.default_rng(0).random((SLICES, SIZE, SIZE), dtype=np.float32)
    for split in ("train", "val"):
        simulation = Simulation(size=SIZE, coils=3)
        simulation.write(tmp_path / f"multicoil_{split}/a.h5", volume, "one")
    (sample,) = SliceDataset(tmp_path / "multicoil_val", masks(), slab=4)
    assert sample.image.shape == (3, SLICES, SIZE, SIZE)
    expected = undersample(fftc(sample.image, dims=3), sample.mask)
    assert relative_error(fftc(sample.zero_filled, dims=3), expected) < 1e-6
    model = IRIM3D(12, 1, hidden=(4,), strides=(1,), slab=4, coils=coils)
    config = Masks("poisson", (0.2,), (3,))
    options = {"challenge": "multicoil", "batch_size": 1}
    best = load(train(tmp_path, tmp_path / "run", model, config, **options))
    reconstruct(best, tmp_path / "multicoil_val", tmp_path, masks())
    found = torch.from_numpy(read_reconstruction(tmp_path / "a.h5"))
    with torch.no_grad():
        images = best(sample.zero_filled.unsqueeze(0), sample.mask.unsqueeze(0))
    whole = root_sum_of_squares(images, dim=1)[0]
    assert relative_error(found, center_crop(whole, found.shape[-2:])) < 1e-5
