"""Data of several coils, and slabs of slices: simulated, loaded, reconstructed."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduce.rim import RIM
from benchmarks.reproduce.unet import UNet
from mri_example.cli import main
from mri_example.data.dataset import SliceDataset
from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.data.simulate import Simulation, coil_maps
from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.models import IRIM2D, IRIM3D
from mri_example.reconstruct import reconstruct, zero_filled
from mri_example.training.checkpoints import export, load
from mri_example.transforms import center_crop, ifftc
from tests.mri.runs import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MASKS = Masks("random", [0.2], [3])
COILS, SLICES, SIZE = 3, 5, 16
FAN = {"hidden": (4, 4), "strides": (1, 2)}


def head(slices: int = SLICES) -> np.ndarray:
    y, x = np.mgrid[-1:1:20j, -1:1:20j]
    disc = (x**2 + y**2 < 0.6).astype(np.float32)
    return np.stack([(1 + i) * disc for i in range(slices)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a data root with one volume in each folder, of three coils."""
    root = tmp_path_factory.mktemp("root")
    simulation = Simulation(SIZE, coils=COILS, noise=0.001)
    for split in ("train", "val"):
        simulation.write(root / f"multicoil_{split}/{split}.h5", head(), split)
    return root


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_coil_maps_are_normalized_and_smooth(coils, slices, seed):
    maps = coil_maps(coils, (slices, 24, 20), np.random.default_rng(seed))
    assert maps.shape == (coils, slices, 24, 20)
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1)
    for axis in (2, 3):
        assert np.abs(np.diff(maps, axis=axis)).max() < 0.25
    assert len(np.unique(np.abs(maps[:, 0, 0, 0]))) == coils


def test_the_noise_of_the_coils_is_white():
    noise, options = 0.05, {"coils": 4}
    blank = Simulation(32, noise=0, **options).kspace("a", head(8))
    noisy = Simulation(32, noise=noise, **options).kspace("a", head(8))
    drawn = np.moveaxis(noisy - blank, 1, 0).reshape(4, -1) / (3e-4 * noise)
    found = drawn @ drawn.conj().T / drawn.shape[1]
    assert np.abs(found - np.eye(4)).max() < 0.03


def test_the_target_is_the_root_sum_of_squares_of_the_coils(root):
    file = KSpaceFile.inspect(root / "multicoil_val/val.h5")
    assert (file.coils, file.slices, file.target) == (
        COILS,
        SLICES,
        "reconstruction_rss",
    )
    kspace = torch.stack([torch.from_numpy(file.kspace(i)) for i in range(SLICES)])
    combined = ifftc(kspace).abs().square().sum(1).sqrt()
    target = torch.from_numpy(file.target_volume())
    assert torch.allclose(center_crop(combined, (SIZE, SIZE)), target, rtol=1e-5)


def test_without_noise_several_coils_see_what_one_sees():
    one = Simulation(SIZE, noise=0).kspace("a", head())
    many = Simulation(SIZE, noise=0, coils=5).kspace("a", head())
    combined = ifftc(torch.from_numpy(many)).abs().square().sum(1).sqrt()
    alone = ifftc(torch.from_numpy(one)).abs()
    assert torch.allclose(combined, alone, atol=1e-6 * alone.max().item())


def test_a_target_of_all_coils_is_not_that_of_one(tmp_path):
    Simulation(SIZE).write(tmp_path / "a.h5", head(), "a")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["reconstruction_rss"] = file["reconstruction_esc"][()] + 1
    assert KSpaceFile.inspect(tmp_path / "a.h5").target == "reconstruction_esc"


def test_a_sample_has_all_coils_and_one_mask(root):
    for sample in SliceDataset(root / "multicoil_val", MASKS):
        assert sample.image.shape == (COILS, SIZE, SIZE)
        assert sample.mask.shape == (1, 1, SIZE)
    for sample in SliceDataset(root / "multicoil_val", MASKS, slab=3):
        assert sample.image.shape == (COILS, 3, SIZE, SIZE)
        assert sample.mask.shape == (1, 1, 1, SIZE)


@pytest.mark.parametrize("slab", [None, 1, 2, 3, 5, 9])
def test_zero_filled_volumes_are_the_same_slice_by_slice_and_in_slabs(
    root, tmp_path, slab
):
    class Method:
        def __call__(self, images, mask):
            assert slab is None or images.shape[2] == min(slab, SLICES)
            return zero_filled(images, mask)

    method = Method()
    method.slab = slab
    data = root / "multicoil_val"
    reconstruct(method, data, tmp_path, MASKS, batch_size=4)
    found = read_reconstruction(tmp_path / "val.h5")
    expected = torch.stack(
        [
            sample.zero_filled.abs().square().sum(0).sqrt()
            for sample in SliceDataset(data, MASKS)
        ]
    )
    assert found.shape == (SLICES, SIZE, SIZE)
    assert np.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (IRIM2D(12, 1, **FAN, coils=COILS), "nmse"),
        (IRIM2D(12, 1, **FAN, coils=COILS, read_out="parametric"), "ssim"),
        (IRIM3D(12, 1, **FAN, coils=COILS, slab=3), "l1"),
        (IRIM2D(8, 1, **FAN, coils=None), "l1"),
        (IRIM3D(8, 1, **FAN, coils=None, slab=3, read_out="parametric"), "ssim"),
        (RIM(4, 2), "nmse"),
        (UNet(2, 2), "ssim"),
    ],
    ids=["irim", "read-out", "irim 3d", "any coils", "any 3d", "rim", "unet"],
)
def test_every_model_trains_is_exported_and_reconstructs(root, tmp_path, model, loss):
    options = {"challenge": "multicoil", "batch_size": 2, "training": {"loss": loss}}
    best = train(root, tmp_path / "run", model, **options)
    export(best, tmp_path / "model.safetensors", type(model))
    volumes = []
    for path in (best, tmp_path / "model.safetensors"):
        loaded = load(path, model=type(model))
        assert loaded.slab == model.slab
        out = tmp_path / path.suffix
        reconstruct(loaded, root / "multicoil_val", out, MASKS)
        volumes.append(read_reconstruction(out / "val.h5"))
    assert volumes[0].shape == (SLICES, SIZE, SIZE)
    assert np.isfinite(volumes[0]).all()
    assert np.array_equal(*volumes)


@pytest.mark.parametrize("space", [(8, 8), (3, 8, 8)])
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_an_irim_for_any_coils_is_one_for_a_single_coil_on_each(
    space, batch, coils, seed
):
    torch.manual_seed(seed)
    options = {"multiplicity": 2, "metadata": ["a", "b"]}
    kind = IRIM2D if len(space) == 2 else IRIM3D
    each = kind(10, 1, **FAN, coils=None, **options)
    single = kind(10, 1, **FAN, **options)
    single.load_state_dict(each.state_dict())
    images = torch.randn(batch, coils, *space, dtype=torch.complex64)
    mask = (torch.rand(batch, *(1,) * len(space), 8) < 0.5).float()
    metadata = torch.rand(batch, 2)
    found = each(images, mask, metadata)
    scale = each.scale_of(images)
    for i in range(coils):
        alone = single(images[:, i : i + 1], mask, metadata, scale=scale)
        assert torch.allclose(found[:, i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_one_mask_serves_all_images_and_no_coil_is_no_number():
    each = IRIM2D(8, 1, **FAN, coils=None)
    images, mask = (
        torch.randn(2, 3, 8, 8, dtype=torch.complex64),
        torch.ones(1, 1, 1, 8),
    )
    masks = mask.expand(2, -1, -1, -1)
    for model in (each, RIM(4, 2)):
        assert torch.equal(model(images, mask), model(images, masks))
    with pytest.raises(InputError, match="coils is 0, but must be at least 1"):
        IRIM2D(8, 1, **FAN, coils=0)
    with pytest.raises(InputError, match="slab is 0, but must be at least 1"):
        IRIM3D(8, 1, **FAN, slab=0)


def test_what_was_finished_with_another_model_is_not_taken_for_this_one(root, tmp_path):
    options = {"challenge": "multicoil", "batch_size": 2}
    last = train(root, tmp_path, RIM(4, 2), **options)
    before = last.read_bytes()
    assert train(root, tmp_path, RIM(4, 2), **options) == last
    assert last.read_bytes() == before
    with pytest.raises(InputError, match=r"written with channels = 4, but .* says 8"):
        train(root, tmp_path, RIM(8, 2), **options)


def test_an_irim_for_any_coils_learns_from_files_of_different_coils(tmp_path):
    for split, several in {"train": (2, 3), "val": (2, 4)}.items():
        for coils in several:
            file = tmp_path / f"multicoil_{split}/{split}{coils}.h5"
            Simulation(SIZE, coils=coils).write(file, head(), split)
    model, options = IRIM2D(8, 1, **FAN, coils=None), {"challenge": "multicoil"}
    best = load(train(tmp_path, tmp_path / "run", model, batch_size=1, **options))
    data, out = tmp_path / "multicoil_val", tmp_path / "out"
    assert len(reconstruct(best, data, out, MASKS)) == 2
    assert np.isfinite(read_reconstruction(out / "val4.h5")).all()


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_slabs_thicker_than_a_volume_and_mixed_coils_are_refused(root, tmp_path):
    options = {"challenge": "multicoil", "batch_size": 2}
    thick = IRIM3D(12, 1, **FAN, coils=COILS, slab=6)
    with pytest.raises(InputError, match=r"slab is 6, but .*train\.h5 has only 5"):
        train(root, tmp_path / "run", thick, **options)
    for coils in (2, 3):
        path = tmp_path / f"data/multicoil_train/{coils}.h5"
        Simulation(SIZE, coils=coils).write(path, head(), "a")
    with pytest.raises(InputError, match=r"2\.h5 has 2 coils and .*3\.h5 3"):
        train(tmp_path / "data", tmp_path / "run", UNet(2, 2), **options)
    assert not (tmp_path / "run").exists()


def test_a_model_for_other_coils_says_so(root, tmp_path):
    model = IRIM2D(8, 1, **FAN, coils=2)
    with pytest.raises(InputError, match=r"val\.h5 has 3 coils, but the model takes 2"):
        reconstruct(model, root / "multicoil_val", tmp_path, MASKS)
    small = UNet(2, 4)
    with pytest.raises(InputError, match=r"val\.h5 cannot be.*at least 32 by 32"):
        reconstruct(small, root / "multicoil_val", tmp_path, MASKS)
    assert not list(tmp_path.iterdir())


def test_exports_that_cannot_be_used(tmp_path, capsys):
    nothing = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        load(nothing)
    nothing.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load(nothing)
    options = ("--checkpoint", tmp_path / "a.ckpt", "--output", tmp_path / "a.pt")
    assert "must end in .safetensors" in refused(capsys, "export", *options)


def test_no_coils_are_refused():
    with pytest.raises(InputError, match="coils is 0, but there must be at least one"):
        Simulation(SIZE, coils=0)
