"""The loader over many epochs, and files of every size that people have."""

import ctypes
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate

from mri_example.cli import main
from mri_example.data.dataset import SliceDataset
from mri_example.data.files import KSpaceFile, read_reconstruction, write_kspace
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.reconstruct import reconstruct, zero_filled

MASKS = Masks("random", [0.1], [4])
EVERYTHING = Masks("random", [1.0], [1])
EPOCHS = 6
VOLUME = (8, 256, 128)  # three of them: 6 MB of k-space, 3 MB of images
ALLOWED = 2 * 2**20  # bytes, over all epochs but the first two
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def random_kspace(*shape):
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def write(path, shape, recon=None, target=True, mask=None):
    """Write k-space of noise; its target is that of all coils, in `recon`."""
    kspace = random_kspace(*shape) * (1 if mask is None else mask)
    rows, cols = shape[-2:]
    height, width = recon or (rows // 2, cols)
    header = Header((rows, cols, 1), (height, width, 1), cols // 2, cols - 1)
    images = magnitudes(kspace)
    top, left = (rows - height) // 2, (cols - width) // 2
    cropped = images[:, top : top + height, left : left + width] if target else None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_kspace(path, kspace.astype(np.complex64), cropped, header, {}, mask)
    return images


def magnitudes(kspace):
    """Return the root-sum-of-squares, written with numpy alone."""
    axes = (-2, -1)
    images = np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho")
    power = np.abs(np.fft.fftshift(images, axes)) ** 2
    combined = power if kspace.ndim == 3 else power.sum(1)
    return np.sqrt(combined).astype(np.float32)


def resident() -> int:
    """Return the memory of this process in bytes, without what was freed."""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_volumes() -> int:
    links = list(Path("/proc/self/fd").iterdir())
    names = [os.readlink(link) for link in links if link.exists()]
    return sum(name.endswith(".h5") for name in names)


class Measured:
    """Make a batch, as loaders do, and say what this process holds after it."""

    def __call__(self, samples):
        default_collate(samples)
        return os.getpid(), resident(), open_volumes()


class Hoarder(SliceDataset):
    """The control: keeps files open, and what it read."""

    def __getitem__(self, item):
        file, _ = self.items[item]
        self.kept = getattr(self, "kept", [])
        sample = super().__getitem__(item)
        self.kept.append((h5py.File(file.path), sample.image.clone()))
        return sample


def measured(folder, kind, workers):
    """Return by how much the memory of a process grew, and the most open volumes."""
    dataset = kind(folder, MASKS, epoch=0)
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=Measured(),
    )
    epochs = []
    for epoch in range(EPOCHS):
        dataset.epoch = epoch
        epochs.append({pid: held for pid, *held in loader})
    growth = max(epochs[-1][pid][0] - epochs[1][pid][0] for pid in epochs[1])
    return growth, max(held[1] for epoch in epochs for held in epoch.values())


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    for i in range(3):
        write(folder / f"{i}.h5", VOLUME)
    return folder


@linux
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_and_open_files_do_not_grow_over_epochs(volumes, workers):
    growth, files = measured(volumes, SliceDataset, workers)
    assert growth < ALLOWED, f"{growth / 2**20:.1f} MB"
    assert files == 0


@linux
@pytest.mark.parametrize("workers", [0, 1])
def test_the_measurement_sees_a_loader_that_keeps_what_it_read(volumes, workers):
    growth, files = measured(volumes, Hoarder, workers)
    assert growth > 4 * ALLOWED, f"{growth / 2**20:.1f} MB"
    assert files > 0


@given(
    st.integers(1, 3),
    st.sampled_from([(), (1,), (3,)]),
    st.tuples(st.integers(9, 26), st.integers(7, 19)),
    st.data(),
)
def test_odd_and_even_sizes_are_reconstructed_alike(
    tmp_path_factory, slices, coils, plane, data
):
    rows, cols = plane
    recon = data.draw(st.tuples(st.integers(1, rows), st.integers(1, cols)))
    folder = tmp_path_factory.mktemp("odd")
    write(folder / "a.h5", (slices, *coils, *plane), recon)
    expected = KSpaceFile.inspect(folder / "a.h5").target_volume()
    reconstruct(zero_filled, folder, folder / "out", EVERYTHING)
    found = read_reconstruction(folder / "out/a.h5")
    assert found.shape == (slices, *recon)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("undersampled", [True, False])
def test_images_narrower_than_the_header_says_are_squares(tmp_path, undersampled):
    """As in some FLAIR files of the brain data: 203 columns, 320 in the header."""
    shape, recon = (2, 4, 640, 203), (320, 320)
    mask = (np.arange(203) % 2 == 0).astype(np.float32) if undersampled else None
    images = write(tmp_path / "flair.h5", shape, recon, target=False, mask=mask)
    file = KSpaceFile.inspect(tmp_path / "flair.h5")
    assert (file.crop, file.padding) == ((203, 203), (0, 203))
    reconstruct(zero_filled, tmp_path, tmp_path / "out", EVERYTHING)
    found = read_reconstruction(tmp_path / "out/flair.h5")
    assert found.shape == (2, 203, 203)
    np.testing.assert_allclose(found, images[:, 218:421], rtol=1e-3, atol=1e-5)


def test_narrow_images_are_evaluated_against_a_narrow_target(tmp_path, capsys):
    write(tmp_path / "data/flair.h5", (2, 4, 64, 23), (23, 23))
    data, out = tmp_path / "data", tmp_path / "out"
    reconstruct(zero_filled, data, out, EVERYTHING)
    assert main(["evaluate", f"--targets={data}", f"--reconstructions={out}"]) == 0
    assert "flair.h5" in capsys.readouterr().out


def test_volumes_of_other_coils_are_loaded_one_by_one(tmp_path):
    for coils in (2, 3):
        write(tmp_path / f"{coils}.h5", (2, coils, 16, 8))
    dataset = SliceDataset(tmp_path, MASKS)
    assert [len(sample.image) for sample in dataset] == [2, 2, 3, 3]
    reconstruct(zero_filled, tmp_path, tmp_path / "out", MASKS)
    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(InputError, match=r"3\.h5 has 3 coils, but the model takes 2"):
        SliceDataset(tmp_path, MASKS, coils=2)


def test_volumes_that_differ_in_their_endings_only_are_both_kept(tmp_path):
    for ending in ("h5", "hdf5"):
        write(tmp_path / f"a.{ending}", (2, 16, 8))
    names = [sample.name for sample in SliceDataset(tmp_path, MASKS)]
    assert names == ["a.h5", "a.h5", "a.hdf5", "a.hdf5"]
    out = tmp_path / "out"
    assert len(reconstruct(zero_filled, tmp_path, out, MASKS)) == 2
    assert {path.name for path in out.iterdir()} == {"a.h5", "a.hdf5"}


def test_one_slice_is_one_batch_in_float_and_complex(tmp_path):
    write(tmp_path / "a.h5", (1, 16, 9))
    (sample,) = SliceDataset(tmp_path, MASKS)
    assert sample.image.dtype == torch.complex64
    assert sample.zero_filled.shape == (1, 8, 9)
