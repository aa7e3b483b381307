"""The data set of slices: what a sample holds, and what its randomness depends on."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mri_example.data.dataset import SliceDataset, flip_and_turn
from mri_example.data.files import write_kspace
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.masks import Masks, undersample, volume_seed
from mri_example.transforms import center_crop, fftc, fitted, ifftc
from tests.mri.signals import kspace_of
from tests.tolerances import EQUAL

MASKS = Masks("random", [0.1], [4])
RANDOM = {"epoch": 0, "augment": flip_and_turn}
SIZES = {"a.h5": (3, 48, 24), "b.h5": (2, 48, 24)}


def close(value, reference):
    return torch.allclose(value, reference, atol=EQUAL[torch.float32])


def write(folder, name, shape, padding=0):
    rng = np.random.default_rng(len(name))
    rows, cols = shape[1:]
    kspace = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    kspace[..., :padding] = kspace[..., cols - padding :] = 0
    images = ifftc(torch.from_numpy(kspace)).abs()
    target = center_crop(images, (rows // 2, cols)).numpy()
    header = Header(
        (rows, cols, 1),
        (rows // 2, cols, 1),
        cols // 2 - padding,
        cols - 2 * padding - 1,
    )
    write_kspace(folder / name, kspace, target, header, {})
    return torch.from_numpy(kspace)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Return a folder of two volumes and their k-space by name."""
    folder = tmp_path_factory.mktemp("volumes")
    return folder, {name: write(folder, name, shape) for name, shape in SIZES.items()}


def test_every_slice_comes_once_in_order(volumes):
    samples = list(SliceDataset(volumes[0], MASKS))
    names = [(s.name, s.slice_index) for s in samples]
    assert names == [(n, i) for n, shape in SIZES.items() for i in range(shape[0])]


def test_cropping_rows_before_or_after_undersampling_is_the_same(volumes):
    folder, kspaces = volumes
    for sample in SliceDataset(folder, MASKS):
        kspace = kspaces[sample.name][sample.slice_index]
        measured = ifftc(undersample(kspace, sample.mask[0]))
        assert sample.zero_filled.shape == (1, 24, 24)
        assert close(sample.zero_filled[0], center_crop(measured, (24, 24)))
        assert close(sample.image[0], center_crop(ifftc(kspace), (24, 24)))


def test_the_target_is_the_magnitude_of_the_image(volumes):
    dataset = SliceDataset(volumes[0], MASKS)
    targets = np.concatenate([file.target_volume() for file in dataset.files])
    for sample, target in zip(dataset, targets, strict=True):
        assert close(sample.image.abs()[0], torch.from_numpy(target))


def test_every_slice_has_the_maximum_of_its_volume(tmp_path):
    """Also without an attribute; without a target, that of all coils of the slice."""
    write(tmp_path, "a.h5", (3, 48, 24))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        largest = file["reconstruction_esc"][()].max()
        del file.attrs["max"]
    for sample in SliceDataset(tmp_path, MASKS, epoch=0):
        assert sample.maximum == pytest.approx(largest)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        kspace = file["kspace"][()]
        del file["kspace"], file["reconstruction_esc"]
        file["kspace"] = np.stack([kspace, 2 * kspace], axis=1)
    for sample in SliceDataset(tmp_path, MASKS):
        combined = sample.image.abs().square().sum(0).sqrt()
        assert sample.maximum == pytest.approx(combined.max().item())


def test_evaluation_masks_follow_from_the_name_of_the_volume(volumes):
    for sample in SliceDataset(volumes[0], MASKS):
        mask, _ = MASKS((1, 24, 24), seed=volume_seed(sample.name))
        assert torch.equal(sample.mask, mask)
        assert sample.mask.dtype == torch.float32
        assert sample.mask.shape == (1, 1, 24)


@given(
    seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10**4), item=st.integers(0, 4)
)
def test_a_training_slice_follows_from_seed_epoch_and_item_alone(
    volumes, seed, epoch, item
):
    options = {"epoch": epoch, "seed": seed, "augment": flip_and_turn}
    first, second = (SliceDataset(volumes[0], MASKS, **options) for _ in range(2))
    for other in range(item):
        second[other]
    torch.rand(1)
    assert all(map(same, first[item], second[item]))


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_other_seeds_epochs_and_items_draw_other_masks(volumes):
    many = Masks("random", [0.04], [2])
    masks = [
        SliceDataset(volumes[0], many, epoch=epoch, seed=seed)[item].mask
        for epoch, seed, item in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(torch.unique(torch.stack(masks), dim=0)) == len(masks)


def test_other_seeds_epochs_and_items_draw_other_augmentations(volumes):
    phases = [
        SliceDataset(volumes[0], MASKS, epoch=epoch, seed=seed, augment=draw)[
            item
        ].image
        for epoch, seed, item in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(torch.unique(torch.stack([p[0, 0, 0].real for p in phases]))) == 4


def draw(image, generator):
    return torch.full_like(image, torch.rand((), generator=generator).item())


def test_workers_do_not_change_the_samples(volumes):
    dataset = SliceDataset(volumes[0], MASKS, **RANDOM)
    alone, shared = (
        list(DataLoader(dataset, batch_size=2, num_workers=n)) for n in (0, 2)
    )
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.zero_filled, other.zero_filled)
        assert torch.equal(one.mask, other.mask)
        assert one.name == other.name


def test_a_training_sample_is_measured_from_its_own_image(volumes):
    for sample in SliceDataset(volumes[0], MASKS, crop=(20, 16), **RANDOM):
        assert sample.image.shape == (1, 20, 16)
        measured = undersample(fftc(sample.image), sample.mask)
        assert close(sample.zero_filled, ifftc(measured))


def test_a_crop_makes_batches_of_volumes_of_different_sizes(tmp_path):
    write(tmp_path, "a.h5", (2, 48, 24))
    write(tmp_path, "b.h5", (2, 40, 30))
    dataset = SliceDataset(tmp_path, MASKS, crop=(24, 26), epoch=0)
    (batch,) = DataLoader(dataset, batch_size=4)
    assert batch.image.shape == (4, 1, 24, 26)
    assert {s.image.shape for s in SliceDataset(tmp_path, MASKS)} == {
        (1, 24, 24),
        (1, 20, 30),
    }


@pytest.mark.parametrize("epoch", [None, 0])
def test_columns_outside_of_the_encoded_ones_are_not_sampled(tmp_path, epoch):
    write(tmp_path, "a.h5", (4, 48, 24), padding=5)
    everything = Masks("random", [1.0], [1])
    for sample in SliceDataset(tmp_path, everything, epoch=epoch):
        columns = torch.arange(24)
        inside = ((columns >= 5) & (columns < 19)).float()
        assert torch.equal(sample.mask[0, 0], inside)


def test_a_file_keeps_its_own_mask(tmp_path):
    kspace = write(tmp_path, "a.h5", (2, 48, 24))
    mask = torch.arange(24) % 3 == 0
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["kspace"][...] = undersample(kspace, mask).numpy()
        file["mask"] = mask.numpy()
    for sample in SliceDataset(tmp_path, MASKS):
        assert torch.equal(sample.mask[0, 0], mask.float())
        assert close(sample.zero_filled, sample.image)
    with pytest.raises(InputError, match=r"a\.h5 brings a mask.*fully sampled"):
        SliceDataset(tmp_path, MASKS, epoch=0)


@given(st.tuples(*[st.integers(1, 12)] * 4), st.integers(0, 99))
def test_fitting_keeps_the_center(sizes, seed):
    rows, cols, height, width = sizes
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, cols, generator=generator)
    result = fitted(image, (height, width))
    common = (min(rows, height), min(cols, width))
    assert result.shape == (height, width)
    assert torch.equal(center_crop(result, common), center_crop(image, common))
    assert result.count_nonzero() == common[0] * common[1]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_augmentation_moves_pixels_and_turns_all_phases_alike(rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, cols, dtype=torch.complex64, generator=generator)
    turned = flip_and_turn(image, generator)
    before, after = (x.abs().flatten().sort().values for x in (image, turned))
    assert turned.shape == image.shape
    assert close(after, before)
    assert close(turned.sum().abs(), image.sum().abs())
    turn = turned.sum() / image.sum()
    assert close(turn.abs(), torch.ones(()))
    found = [image, image.mT] if rows == cols else [image]
    flips = [x.flip(dims) for x in found for dims in ((), (0,), (1,), (0, 1))]
    assert any(close(turned, turn * flipped) for flipped in flips)


def test_augmentation_changes_most_images():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 4, dtype=torch.complex64, generator=generator)
    found = [flip_and_turn(image, generator) for _ in range(40)]
    turns = {round(float((t.sum() / image.sum()).angle()), 3) for t in found}
    assert len(turns) > 30
    assert sum(not close(t.abs(), image.abs()) for t in found) > 10


def test_volumes_thinner_than_a_slab_are_left_out_by_name(tmp_path, caplog):
    for slices in (2, 3, 5):
        target = np.ones((slices, 8, 8), np.float32)
        target[:, 4] = 2
        kspace = kspace_of(target + np.eye(8, dtype=np.float32), 8, 8)
        target += np.eye(8, dtype=np.float32)
        header = Header((8, 8, 1), (8, 8, 1), center=4, maximum=7)
        write_kspace(tmp_path / f"{slices}.h5", kspace, target, header, {})
    masks, options = Masks("random", [0.2], [2]), {"epoch": 0, "skip_thin": True}
    dataset = SliceDataset(tmp_path, masks, slab=4, **options)
    assert [file.path.name for file in dataset.files] == ["5.h5"]
    assert "2 volumes have fewer slices than a slab of 4" in caplog.text
    assert "left out: 2.h5, 3.h5" in caplog.text
    with pytest.raises(InputError, match="no volume has more than 5 slices"):
        SliceDataset(tmp_path, masks, slab=6, **options)
    whole = SliceDataset(tmp_path, masks, slab=4, skip_thin=True)  # not for training
    assert len(whole.files) == 3
