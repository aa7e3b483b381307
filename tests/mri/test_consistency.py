"""Files whose parts contradict each other are refused, by every command alike.

Each test draws sizes and values. What is accepted in another form is reconstructed to
the very numbers of the standard layout; what is refused names both sources.
"""

import re
import subprocess
import sys
from contextlib import chdir
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import fft

from mri_example.data.dataset import SliceDataset
from mri_example.data.files import (
    KSpaceFile,
    read_reconstruction,
    write_kspace,
    write_reconstruction,
)
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.inspection import inspect_root
from mri_example.masks import Masks
from mri_example.reconstruct import reconstruct, zero_filled
from tests.mri.signals import fourier, logged, magnitudes
from tests.strategies import costly

EVERYTHING = Masks("random", [1.0], [1])
sizes = st.integers(16, 28)
seeds = st.integers(0, 999)
coils = st.sampled_from([0, 2, 3])
bools = st.booleans()
FULL = object()  # of the header: what describes the k-space


def head(seed, rows, cols, coils=0, slices=3):
    """Return k-space of a smooth image without symmetries, with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :cols]
    image = np.zeros((slices, max(coils, 1), rows, cols), complex)
    for image_of_slice in image:
        for width in (0.16, 0.1, 0.07):
            cy, cx = rng.uniform(0.3, 0.7, 2)
            bump = ((y / rows - cy) ** 2 + (x / cols - cx) ** 2) / width**2
            seen = rng.uniform(0.5, 1, (len(image_of_slice), 1, 1))
            image_of_slice += seen * np.exp(-bump)
    noise = rng.normal(size=(2, *image.shape))
    kspace = fourier(image) + 1e-3 * (noise[0] + 1j * noise[1])
    return (kspace if coils else kspace[:, 0]).astype(np.complex64)


def standard_header(kspace, **changes):
    rows, cols = kspace.shape[-2:]
    values = {"center": cols // 2, "maximum": cols - 1, "encoded": (rows, cols, 1)}
    return Header(**({"recon": (rows, cols, 1)} | values | changes))


def write(folder, kspace, /, target=None, header=FULL, mask=None, **datasets):
    """Write a file; data sets that are given replace what is written."""
    folder.mkdir(parents=True, exist_ok=True)
    described = standard_header(kspace) if header is FULL else header
    path = folder / "a.h5"
    write_kspace(path, kspace, target, described or b"", {}, mask)
    with h5py.File(path, "r+") as file:
        if header is None:
            del file["ismrmrd_header"]
        for name, value in datasets.items():
            file.pop(name, None)
            file[name] = value
    return folder


def refusals(folder):
    """Return what training, reconstruction, evaluation and check say of the file."""
    out = folder / "out"
    commands = [
        lambda: SliceDataset(folder, EVERYTHING, epoch=0),
        lambda: SliceDataset(folder, EVERYTHING),
        lambda: reconstruct(zero_filled, folder, out, EVERYTHING),
        lambda: evaluate(folder, _something(folder.parent / "estimates")),
    ]
    said = []
    for command in commands:
        with pytest.raises(InputError) as caught:
            command()
        said.append(str(caught.value))
    assert not out.exists()
    root = folder.parent / "root"
    place = root / folder.name
    if "_" not in folder.name:
        place = root / ("multicoil_test" if _axes(folder) == 4 else "singlecoil_test")
    place.mkdir(parents=True)
    (folder / "a.h5").rename(place / "a.h5")
    for quick in (True, False):
        (report,) = inspect_root(root, quick=quick)
        said.append(report.defects[0].replace(str(place), str(folder)))
    return said


def _axes(folder):
    try:
        with h5py.File(folder / "a.h5") as file:
            return file["kspace"].ndim
    except OSError:  # it is locked
        return 3


def _something(folder):
    write_reconstruction(folder / "a.h5", np.ones((3, 8, 8)))
    return folder


def assert_refused(folder, *parts):
    for said in refusals(folder):
        assert said.startswith(f"{folder / 'a.h5'}"), said
        assert all(part in said for part in parts), said


def assert_as_standard(tmp, folder, kspace, **options):
    """Assert that all slices are reconstructed as those of the standard layout are."""
    reference = write(tmp / "reference", kspace, **options)
    for one in (reference, folder):
        reconstruct(zero_filled, one, one / "out", EVERYTHING)
    found, expected = (
        read_reconstruction(one / "out/a.h5") for one in (folder, reference)
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(expected, magnitudes(kspace), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    """Return a function that makes an empty folder, for each drawn case."""
    return lambda: tmp_path_factory.mktemp("data")


# 1. the header against k-space


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils)
def test_swapped_axes(tmp, seed, rows, cols, coils) -> None:
    """K-space of rows and columns exchanged would lose columns without a word."""
    assume(rows != cols)
    kspace, at = head(seed, rows, cols, coils), tmp()
    folder = write(at / "a", kspace.swapaxes(-1, -2), header=standard_header(kspace))
    said = f"the header speaks of {cols} encoded columns, but k-space has {rows},"
    assert_refused(folder, said, "exchange its last two axes")


@given(seed=seeds, rows=sizes, cols=sizes, more=st.integers(1, 9))
def test_other_encoded_columns(tmp, seed, rows, cols, more) -> None:
    kspace = head(seed, rows, cols)
    encoded = (rows, cols + more, 1)
    assume(encoded[:2] != (cols, rows))
    folder = write(tmp() / "a", kspace, header=standard_header(kspace, encoded=encoded))
    assert_refused(folder, f"{cols + more} encoded columns, but k-space has {cols}")


@given(seed=seeds, rows=sizes, cols=sizes, data=st.data())
def test_limits_that_drop_measured_columns(tmp, seed, rows, cols, data) -> None:
    """A center of 0 in the header of full k-space would drop half of its columns."""
    kspace = head(seed, rows, cols)
    center = data.draw(st.integers(0, cols // 2 - 1))
    maximum = data.draw(st.integers(cols // 4 + center, cols - 1))
    header = standard_header(kspace, center=center, maximum=maximum)
    folder = write(tmp() / "a", kspace, header=header)
    left, right = cols // 2 - center, min(cols, cols // 2 - center + maximum + 1)
    assert_refused(
        folder,
        f"to columns {left} to {right - 1} (center {center}, maximum {maximum}, min",
        f"k-space has values in 0 to {left - 1 if right == cols else cols - 1} of",
    )


@given(
    seed=seeds,
    rows=sizes,
    cols=sizes,
    left=st.integers(0, 3),
    low=st.integers(0, 3),
    mine=bools,
)
def test_limits_that_agree_are_taken(tmp, seed, rows, cols, left, low, mine) -> None:
    """A mask of the file, too, counts within them, as those of the brain data do."""
    kspace, at, first = head(seed, rows, cols), tmp(), left + low
    mask = np.ones(cols, np.float32)
    if mine:
        mask[cols // 2 + 2 :: 3] = mask[1] = 0
    kspace[..., :first] = 0
    kspace *= mask
    center, maximum = cols // 2 - left, cols - left - 1
    header = standard_header(kspace, center=center, maximum=maximum, minimum=low)
    options = {"mask": mask} if mine else {"target": magnitudes(kspace)}
    folder = write(at / "a", kspace, header=header, **options)
    with logged() as said:
        samples = list(SliceDataset(folder, EVERYTHING, epoch=None if mine else 0))
    assert not said
    mask[:first] = 0
    for sample in samples:
        np.testing.assert_array_equal(sample.mask.flatten(), mask)
    options.pop("target", None)
    assert_as_standard(at, folder, kspace, header=header, **options)


@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, left=st.integers(1, 4), empty=bools)
def test_masks_of_all_encoded_columns_are_full(tmp, seed, rows, cols, left, empty):
    """The target counts; a mask of other columns alone measures nothing."""
    kspace, mask = head(seed, rows, cols), np.ones(cols, np.float32)
    kspace[..., :left] = 0
    mask[left:] = not empty
    header = standard_header(kspace, minimum=left)
    target = 1.5 * magnitudes(kspace)
    folder = write(tmp() / "a", kspace, target, header=header, mask=mask)
    with pytest.raises(InputError) as caught:
        SliceDataset(folder, EVERYTHING)
    said = (
        f"mask has no column of the ({left}, {cols})" if empty else "is 1.5 times the"
    )
    assert said in str(caught.value)


@given(seed=seeds, rows=sizes, cols=sizes, left=st.integers(1, 4), mine=bools)
def test_limits_that_exclude_measured_columns(tmp, seed, rows, cols, left, mine):
    """Those below the lowest step, or those of the file's own mask."""
    kspace, mask = head(seed, rows, cols), np.ones(cols, np.float32)
    if mine:
        mask[cols // 2 + 2 :: 3] = 0
    header = standard_header(kspace, minimum=left)
    folder = write(
        tmp() / "a", kspace * mask, header=header, mask=mask if mine else None
    )
    said = f"to columns {left} to {cols - 1} (center {cols // 2}, maximum {cols - 1}, "
    assert_refused(folder, f"{said}minimum {left})", "k-space has values in 0 to ")


@given(
    seed=seeds, rows=sizes, cols=sizes, left=st.integers(1, 3), right=st.integers(1, 3)
)
def test_columns_of_zeros_on_both_sides_are_named(tmp, seed, rows, cols, left, right):
    """Zeros of an interpolation lie there, and all that was measured between them."""
    kspace = head(seed, rows, cols)
    kspace[..., :left] = kspace[..., -right:] = 0
    folder = write(tmp() / "a", kspace)
    with logged() as said:
        SliceDataset(folder, EVERYTHING)
    runs = f"0 to {left - 1} and {cols - right} to {cols - 1}"
    assert (
        f"columns {runs} of k-space are zero in every slice, {left + right} " in said[0]
    )


@given(seed=seeds, size=sizes, name=st.sampled_from(["radial", "spiral", "epi"]))
def test_trajectories_that_are_not_cartesian(tmp, seed, size, name):
    kspace = head(seed, size, size)
    header = standard_header(kspace, trajectory=name)
    folder = write(tmp() / "a", kspace, header=header)
    assert_refused(folder, f"the trajectory is {name}, but k-space is read as Cartes")


@given(
    seed=seeds,
    rows=sizes,
    cols=sizes,
    coils=coils,
    name=st.sampled_from(["", "cartesian"]),
)
def test_headers_that_agree_are_taken(tmp, seed, rows, cols, coils, name) -> None:
    kspace = head(seed, rows, cols, coils)
    header = standard_header(kspace, trajectory=name)
    folder = write(tmp() / "a", kspace, magnitudes(kspace), header=header)
    assert len(SliceDataset(folder, EVERYTHING, epoch=0)) == 3


# 2. k-space against its target


def hybrid(axis):
    def change(kspace):
        moved = np.fft.ifftshift(kspace, axis)
        return np.fft.fftshift(np.fft.ifft(moved, axis=axis, norm="ortho"), axis)

    return change


def unshifted(*axes):
    """Return k-space of images to which `ifftshift` was not applied."""

    def change(kspace):
        for axis in axes:
            size = kspace.shape[axis]
            shape = [1] * kspace.ndim
            shape[axis] = size
            turns = np.exp(2j * np.pi * (size // 2) * np.arange(size) / size)
            kspace = kspace * turns.reshape(shape)
        return kspace

    return change


WRONG = {
    "hybrid rows": (hybrid(-2), "k-space is hybrid, its rows are positions"),
    "hybrid columns": (hybrid(-1), "k-space is hybrid, its columns are positions"),
    "unshifted": (unshifted(-2, -1), "shifted by half along rows and columns"),
    "unshifted rows": (unshifted(-2), "shifted by half along rows:"),
    "unshifted columns": (unshifted(-1), "shifted by half along columns:"),
    "conjugated": (np.conj, "k-space is conjugated"),
}
FLIPS = {
    "upside down": (lambda t: t[:, ::-1], "the target is flipped along rows:"),
    "mirrored": (lambda t: t[:, :, ::-1], "the target is flipped along columns:"),
    "of another place": (lambda t: np.roll(t, t.shape[1] // 3, 1), "is no image of it"),
}


@pytest.mark.parametrize("name", WRONG)
@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, crop=st.integers(0, 3))
def test_kspace_that_is_transformed_otherwise(tmp, name, seed, rows, cols, coils, crop):
    change, said = WRONG[name]
    kspace = head(seed, rows, cols, coils)
    target = magnitudes(kspace, (rows - crop, cols - crop))
    wrong = change(kspace).astype(np.complex64)
    folder = write(tmp() / "a", wrong, target)
    name = "reconstruction_rss" if coils else "reconstruction_esc"
    assert_refused(folder, "k-space of slice", name, said)


@pytest.mark.parametrize("name", FLIPS)
@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, coils=coils)
def test_targets_of_another_orientation_or_slice(tmp, name, seed, rows, cols, coils):
    change, said = FLIPS[name]
    kspace = head(seed, rows, cols, coils)
    image = magnitudes(kspace)
    target = np.ascontiguousarray(change(image))
    same = (image * target).sum((1, 2)) ** 2
    same /= (image**2).sum((1, 2)) * (target**2).sum((1, 2))
    alike = 0.97 if "flipped" in said else 0.7  # by chance; a doubt at most
    assume(same.max() < alike)
    folder = write(tmp() / "a", kspace, target)
    assert_refused(folder, "k-space", "reconstruction_", said)


@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, turns=st.integers(0, 3))
def test_targets_with_rows_and_columns_exchanged(tmp, seed, rows, cols, coils, turns):
    """As after numpy.rot90, or from a program that stores columns first."""
    kspace = head(seed, rows, cols, coils)
    target = np.ascontiguousarray(magnitudes(kspace).swapaxes(1, 2))
    target = target[:, :: 1 - 2 * (turns & 1), :: 1 - (turns & 2)]
    folder = write(tmp() / "a", kspace, np.ascontiguousarray(target))
    assert_refused(folder, "k-space", "has rows and columns exchanged: transpose it")


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, power=st.sampled_from([-1, 1]))
def test_transforms_that_are_not_orthonormal(tmp, seed, rows, cols, coils, power):
    kspace = head(seed, rows, cols, coils)
    scale = (rows * cols) ** (power / 2)
    wrong = (kspace * scale).astype(np.complex64)
    folder = write(tmp() / "a", wrong, magnitudes(kspace))
    for said in refusals(folder):
        number = re.search(r"is (\S+) times the orthonormal transform of k-space", said)
        assert float(number[1]) == pytest.approx(1 / scale, rel=0.01)


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, crop=st.integers(0, 5))
def test_targets_that_agree_are_taken(tmp, seed, rows, cols, coils, crop):
    kspace = head(seed, rows, cols, coils)
    target = magnitudes(kspace, (rows - crop, cols))
    folder = write(tmp() / "a", kspace, target)
    with logged() as said:
        everything = SliceDataset(folder, EVERYTHING)
    assert not said
    for sample, expected in zip(everything, target, strict=True):
        found = np.sqrt((np.abs(sample.image.numpy()) ** 2).sum(0))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils)
def test_undersampled_data_are_not_judged_by_their_target(tmp, seed, rows, cols, coils):
    kspace = head(seed, rows, cols, coils)
    mask, target = np.zeros(cols, np.float32), magnitudes(kspace)
    mask[cols // 2 - 2 : cols // 2 + 2] = mask[::3] = 1
    folder = write(tmp() / "a", kspace * mask, target, mask=mask)
    assert len(SliceDataset(folder, EVERYTHING)) == 3


@given(seed=seeds, rows=sizes, cols=sizes, wrong=st.floats(0.1, 0.9))
def test_a_maximum_below_the_target(tmp, seed, rows, cols, wrong):
    kspace = head(seed, rows, cols)
    target = magnitudes(kspace)
    folder = write(tmp() / "a", kspace, target)
    with h5py.File(folder / "a.h5", "r+") as file:
        file.attrs["max"] = stated = wrong * target[0].max()
    assert_refused(folder, f"'max' is {stated:.6g}", "reconstruction_esc")


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils)
def test_a_slice_of_zeros_with_a_target(tmp, seed, rows, cols, coils):
    kspace = head(seed, rows, cols, coils)
    target = magnitudes(kspace)
    kspace[0] = 0
    folder = write(tmp() / "a", kspace, target)
    assert_refused(folder, "of slice 0 is no image of its k-space")


@given(seed=seeds, size=sizes, coils=coils, slices=st.integers(2, 7), data=st.data())
def test_slices_in_another_order_than_their_targets(
    tmp, seed, size, coils, slices, data
):
    """Reversed ones have the middle slice in common."""
    kspace = head(seed, size, size, coils, slices)
    order = np.arange(slices)[::-1]
    if data.draw(bools):
        order = np.roll(np.arange(slices), data.draw(st.integers(1, slices - 1)))
    image = magnitudes(kspace)
    read = (slices - 1) // 3
    pair = [image[read].ravel(), image[order[read]].ravel()]
    assume(
        np.dot(*pair) ** 2 < 0.7 * np.dot(pair[0], pair[0]) * np.dot(pair[1], pair[1])
    )
    folder = write(tmp() / "a", kspace, np.ascontiguousarray(image[order]))
    assert_refused(folder, "is no image of its k-space")


# 3. k-space against its mask


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, step=st.integers(2, 4))
def test_undersampled_data_without_a_mask(tmp, seed, rows, cols, coils, step):
    kspace = head(seed, rows, cols, coils)
    zero = np.arange(cols) % step == 1
    zero[[0, -1]] = False
    kspace[..., zero] = 0
    target = magnitudes(kspace)
    folder = write(tmp() / "a", kspace, target)
    said = f"{zero.sum()} of {cols} columns of k-space are zero in every slice"
    assert_refused(folder, said, "no data set 'mask'")


@given(seed=seeds, rows=sizes, cols=sizes, slices=st.integers(2, 4))
def test_columns_that_are_zero_in_some_slices(tmp, seed, rows, cols, slices):
    """Either they were lost, or each slice has a mask of its own."""
    kspace = head(seed, rows, cols, slices=slices)
    read = (slices - 1) // 3
    kspace[read, :, 2:4] = 0
    folder = write(tmp() / "a", kspace, magnitudes(kspace))
    with logged() as said:
        assert len(SliceDataset(folder, EVERYTHING, epoch=0)) == slices
    (line,) = said
    assert (
        f"a.h5: 2 columns of k-space of slice {read} are zero, but not in all" in line
    )


@given(rows=st.integers(32, 64), cols=st.integers(32, 64), width=st.floats(0.1, 0.3))
def test_smooth_images_without_noise_are_taken(tmp, rows, cols, width):
    """Their outer columns are small, but not zero: they were not left out."""
    y, x = np.mgrid[:rows, :cols]
    bump = ((y / rows - 0.47) ** 2 + (x / cols - 0.52) ** 2) / width**2
    kspace = fourier(np.exp([-bump, -2 * bump]) + 0j).astype(np.complex64)
    folder = write(tmp() / "a", kspace, magnitudes(kspace))
    with logged() as said:
        assert len(SliceDataset(folder, EVERYTHING, epoch=0)) == 2
    assert not said


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, step=st.integers(2, 4))
def test_slices_that_are_undersampled_each_in_its_own_way(
    tmp, seed, rows, cols, coils, step
):
    kspace = head(seed, rows, cols, coils, slices=4)
    for z, one in enumerate(kspace):
        kept = (np.arange(cols) + z) % step == 0
        kept[cols // 2 - 1 : cols // 2 + 1] = True
        one[..., ~kept] = 0
    folder = write(tmp() / "a", kspace, magnitudes(kspace))
    assert_refused(
        folder, "columns of k-space of slice", "are zero, but not in all slic"
    )


@given(
    seed=seeds, rows=sizes, cols=sizes, coils=coils, step=st.integers(2, 4), mine=bools
)
def test_undersampling_along_the_rows(tmp, seed, rows, cols, coils, step, mine):
    """The mask of a file that is transposed, or none at all."""
    kspace = head(seed, rows, cols, coils)
    zero = np.arange(rows) % step == 1
    zero[rows // 2 - 2 : rows // 2 + 2] = zero[[0, -1]] = False
    kspace[..., zero, :] = 0
    mask = np.ones(cols, np.float32) if mine else None
    folder = write(tmp() / "a", kspace, magnitudes(kspace), mask=mask)
    said = f"{zero.sum()} of {rows} rows of k-space are zero in slice 0"
    assert_refused(folder, said, "masks run along the columns: exchange the last two")


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, share=st.floats(0.05, 0.5))
def test_masks_of_samples_are_no_masks_of_columns(tmp, seed, rows, cols, coils, share):
    """No column is empty, so that half of the samples would count as measured zeros."""
    kept = np.random.default_rng(seed).random((rows, cols)) < share
    kept[rows // 2 - 4 : rows // 2 + 4, cols // 2 - 3 : cols // 2 + 3] = True
    kept[[0, -1]] = kept[:, 0] = True
    kspace = head(seed, rows, cols, coils) * kept
    folder = write(tmp() / "a", kspace, magnitudes(kspace) if seed % 2 else None)
    assert_refused(folder, "of the samples of k-space are zero in slice 0", "columns")


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, step=st.integers(2, 4))
def test_zeros_that_are_rounded_are_zeros(tmp, seed, rows, cols, coils, step):
    """The transform of a zero-filled image leaves rounding where nothing was."""
    kept = np.arange(cols) % step == 0
    kept[cols // 2 - 2 : cols // 2 + 2] = True
    kspace = (head(seed, rows, cols, coils) * kept).astype(np.complex64)
    axes = (-2, -1)
    images = fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho")
    again = np.fft.fftshift(fft.fft2(images, norm="ortho"), axes)
    assume(np.abs(again[..., ~kept]).any())
    folder = write(tmp() / "a", again, magnitudes(again) if seed % 2 else None)
    said = f" of {cols} columns of k-space are zero in every slice"
    assert_refused(folder, said, "but there is no data set 'mask'")


def boxes(data, rows, cols):
    """Return the k-space of boxes without noise, many of whose lines are zero."""
    image = np.zeros((2, rows, cols), complex)
    for _ in range(data.draw(st.integers(1, 3))):
        height, width = (data.draw(st.integers(2, n // 2)) for n in (rows, cols))
        top, left = (rows - height) // 2, (cols - width) // 2
        image[:, top : top + height, left : left + width] += 1
    return fourier(image).astype(np.complex64)


even = st.integers(8, 32).map(lambda half: 2 * half)


@given(rows=even, cols=even, data=st.data())
def test_phantoms_without_noise_are_taken(tmp, rows, cols, data):
    """Sinc functions have zeros; the background of the image is empty as well."""
    kspace = boxes(data, rows, cols)
    folder = write(tmp() / "singlecoil_train", kspace, magnitudes(kspace))
    assert len(SliceDataset(folder, EVERYTHING, epoch=0)) == 2
    (report,) = inspect_root(folder.parent)
    assert not report.defects


@given(rows=even, cols=even, data=st.data(), seed=seeds)
def test_phantoms_that_are_undersampled_are_refused(tmp, rows, cols, data, seed):
    kept = np.random.default_rng(seed).random(cols) < 0.4
    kept[cols // 2 - 2 : cols // 2 + 3] = kept[[0, -1]] = True
    assume(kept.mean() < 0.8)
    kspace = boxes(data, rows, cols) * kept
    folder = write(tmp() / "a", kspace, magnitudes(kspace))
    with pytest.raises(InputError, match=r"a\.h5: .*\bzero"):
        SliceDataset(folder, EVERYTHING, epoch=0)


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, axis=st.sampled_from([-2, -1]))
def test_hybrid_k_space_without_a_target_is_a_doubt(tmp, seed, rows, cols, coils, axis):
    """The object fills half of the field of view, in one place or another."""
    y, x = (np.arange(n) / n - 0.5 for n in (rows, cols))
    kspace = head(seed, rows, cols, coils)
    wide = np.exp(-((y[:, None] / 0.3) ** 8) - (x / 0.3) ** 8)
    kspace = (kspace + 3 * fourier(wide + 0j)).astype(np.complex64)
    for change, doubts in ((lambda k: k, False), (hybrid(axis), True)):
        folder = write(tmp() / "a", change(kspace).astype(np.complex64))
        with logged() as said:
            assert len(SliceDataset(folder, EVERYTHING)) == 3
        found = [s for s in said if "transform along them: if it is hybrid" in s]
        assert bool(found) == doubts, said


@given(seed=seeds, rows=sizes, cols=sizes, factor=st.floats(2.5, 1e9))
def test_a_maximum_far_above_the_target(tmp, seed, rows, cols, factor):
    """The loss `ssim` would take the difference of anything for none."""
    target = magnitudes(kspace := head(seed, rows, cols))
    folder = write(tmp() / "a", kspace, target)
    with h5py.File(folder / "a.h5", "r+") as file:
        file.attrs["max"] = stated = factor * target.max()
    assert_refused(folder, f"'max' is {stated:.6g}", "reconstruction_esc")


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, axis=st.sampled_from([-2, -1]))
def test_energy_away_from_the_center(tmp, seed, rows, cols, coils, axis):
    """Both are unshifted k-space; of columns, masks would miss what counts."""
    kspace = np.fft.ifftshift(head(seed, rows, cols, coils), axis)
    folder = write(tmp() / "a", kspace)
    if axis == -1:
        said = f"is in column 0 of {cols}, but the center of masks and transforms is "
        assert_refused(folder, said + f"{cols // 2}: apply numpy.fft.fftshift")
    else:
        assert len(SliceDataset(folder, EVERYTHING)) == 3


@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, more=st.integers(1, 9))
def test_a_doubt_hides_no_error(tmp, seed, rows, cols, more):
    """More slices than columns are rare; what else is wrong counts all the same."""
    kspace = np.fft.ifftshift(head(seed, rows, cols, slices=cols + more), -1)
    folder = write(tmp() / "a", kspace, header=None)
    assert_refused(folder, f"is in column 0 of {cols}, but the center of masks")


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, move=st.integers(1, 5))
def test_a_mask_of_another_file(tmp, seed, rows, cols, coils, move):
    mask = np.zeros(cols, np.float32)
    mask[cols // 2 - 2 : cols // 2 + 2] = mask[::6] = 1
    kspace = head(seed, rows, cols, coils) * mask
    folder = write(tmp() / "a", kspace, mask=np.roll(mask, move))
    assert_refused(folder, "k-space of slice", "is not zero where the mask is")


@given(
    seed=seeds,
    size=sizes,
    step=st.integers(2, 6),
    factor=st.sampled_from([0.4, 0.9, 1.2, 2]),
    kind=st.sampled_from([float, str]),
)
def test_an_acceleration_that_is_not_that_of_the_mask(
    tmp, seed, size, step, factor, kind
):
    """Scores would count for another acceleration; a center on top is usual."""
    mask = np.zeros(size, np.float32)
    mask[size // 2 % step :: step] = 1
    folder = write(tmp() / "a", head(seed, size, size) * mask, mask=mask)
    stated = factor / mask.mean()
    with h5py.File(folder / "a.h5", "r+") as file:
        file.attrs["acceleration"] = kind(stated)
    with logged() as said:
        SliceDataset(folder, EVERYTHING)
    wrong = f"'acceleration' is {stated:.3g}, but the mask has {1 / mask.mean():.3g}"
    assert (wrong in " ".join(said)) == (factor in (0.4, 2))


@given(seed=seeds, rows=sizes, cols=sizes, column=st.integers(-3, 3))
def test_a_mask_of_columns_that_are_zero(tmp, seed, rows, cols, column):
    mask = np.ones(cols, np.float32)
    mask[1::3] = 0
    zero = cols // 2 + column
    kspace = head(seed, rows, cols) * mask
    assume(mask[zero])
    kspace[..., zero] = 0
    assume(np.abs(kspace).sum((0, 1)).argmax() in range(cols // 2 - 1, cols // 2 + 2))
    folder = write(tmp() / "a", kspace, mask=mask)
    assert_refused(folder, f"columns {zero} to {zero} of k-space", "the mask says")


@given(
    seed=seeds, rows=sizes, cols=sizes, outside=st.integers(1, 3), mine=st.booleans()
)
def test_columns_outside_of_the_acquired_ones_are_a_doubt(
    tmp, seed, rows, cols, outside, mine
):
    """Data that stay right: such columns are zero in the target as well."""
    mask = np.ones(cols, np.float32)
    mask[outside + 1 :: 3] = 0
    mask[cols // 2 - 2 : cols // 2 + 2] = mask[-1] = 1
    kspace = head(seed, rows, cols) * (mask if mine else 1)
    kspace[..., :outside] = 0
    folder = write(tmp() / "a", kspace, mask=mask if mine else None)
    with logged() as said:
        (sample, *_) = SliceDataset(folder, EVERYTHING)
    np.testing.assert_allclose(
        np.abs(sample.zero_filled[0].numpy()), magnitudes(kspace)[0], atol=1e-5
    )
    source = "mask" if mine else "header"
    (line,) = said
    assert f"columns 0 to {outside - 1} of k-space are zero" in line
    assert f"the {source} says that they were measured" in line


@given(
    pattern=st.sampled_from(["random", "equispaced", "magic", "magic_fraction"]),
    cols=st.integers(4, 40),
    fraction=st.floats(0.01, 0.2),
    acceleration=st.floats(1, 4),
    seed=seeds,
)
def test_no_mask_is_empty(pattern, cols, fraction, acceleration, seed):
    mask, low = Masks(pattern, [fraction], [acceleration])((9, cols), seed=seed)
    assert low >= 1
    assert mask[0, cols // 2] == 1


@given(seed=seeds, cols=sizes, wide=st.integers(1, 3))
def test_a_mask_that_misses_the_encoded_columns_is_named(tmp, seed, cols, wide):
    kspace, at = head(seed, 16, cols), tmp()
    middle = cols // 2
    kspace[..., : middle - wide] = kspace[..., middle + wide :] = 0
    header = standard_header(kspace, center=wide, maximum=2 * wide - 1)
    folder = write(at / "a", kspace, header=header)
    columns = np.arange(cols)
    np.save(at / "mask.npy", (columns < middle - wide) & (columns % 2 == 0))
    with pytest.raises(InputError, match=r"a\.h5 cannot be undersampled: the mask le"):
        SliceDataset(folder, Masks(file=str(at / "mask.npy")))[0]


# 4. the layout


@given(seed=seeds, rows=sizes, cols=sizes, coils=st.integers(2, 6))
def test_one_slice_of_coils_among_volumes(tmp, seed, rows, cols, coils):
    kspace = head(seed, rows, cols, coils, slices=1)[0]
    folder = write(tmp() / "multicoil_test", kspace)
    assert_refused(folder, str(kspace.shape), "multicoil_test", "insert an axis of sli")


@given(
    seed=seeds,
    rows=sizes,
    cols=sizes,
    coils=st.integers(2, 6),
    told=st.sampled_from(["header", "target", ""]),
)
def test_coils_last(tmp, seed, rows, cols, coils, told):
    kspace = head(seed, rows, cols, coils)
    target = magnitudes(kspace) if told == "target" else None
    header = standard_header(kspace) if told == "header" else None
    folder = write(tmp() / "a", np.moveaxis(kspace, 1, -1), target, header)
    source = {
        "header": f"the header speaks of {rows} x {cols}",
        "target": f"the target has {rows} rows and {cols} columns",
        "": f"{rows} coils of {coils} columns are rare",
    }
    moved = (3, rows, cols, coils)
    assert_refused(folder, f"{moved}", source[told], "numpy.moveaxis(kspace, -1, 1)")


@given(seed=seeds, rows=sizes, cols=sizes, slices=st.integers(2, 6), told=bools)
def test_slices_last(tmp, seed, rows, cols, slices, told):
    kspace = head(seed, rows, cols, slices=slices)
    moved = np.ascontiguousarray(np.moveaxis(kspace, 0, -1))
    folder = write(tmp() / "a", moved, header=standard_header(kspace) if told else None)
    cure = "if the slices are last, use numpy.moveaxis(kspace, -1, 0)"
    if told:
        source = f"the header speaks of {rows} x {cols} encoded rows and columns"
        assert_refused(folder, f"{moved.shape}", source, cure)
        return
    with logged() as said:
        SliceDataset(folder, EVERYTHING)
    assert f"but {rows} slices of {slices} columns are rare: {cure}" in " ".join(said)


@given(
    seed=seeds, rows=sizes, cols=sizes, pair=st.permutations(range(2, 7)), told=bools
)
def test_coils_first(tmp, seed, rows, cols, pair, told):
    """A target, or the number of receiver channels, contradicts the first axis."""
    slices, coils = pair[:2]
    kspace = head(seed, rows, cols, coils, slices)
    moved = np.ascontiguousarray(kspace.swapaxes(0, 1))
    xml = standard_header(kspace, coils=coils).xml()
    cure = "if the coils are first"
    if not told:
        folder = write(tmp() / "a", moved, magnitudes(kspace), None)
        assert_refused(folder, f"{moved.shape}", cure, "use numpy.swapaxes")
        return
    folder = write(tmp() / "a", moved, None, None, ismrmrd_header=xml)
    with logged() as said:
        SliceDataset(folder, EVERYTHING)
    wrong = f"{moved.shape}, read as (slices, coils, rows, cols), but the header speaks"
    assert f"{wrong} of {coils} receiver channels: {cure}" in " ".join(said)


@given(seed=seeds, rows=sizes, cols=sizes, coils=st.integers(2, 6), told=bools)
def test_coils_of_one_slice_read_as_slices(tmp, seed, rows, cols, coils, told):
    """The header counts as many channels; of slices it may speak as well."""
    kspace = head(seed, rows, cols, coils, 1)[0]
    xml = standard_header(kspace, coils=coils).xml().decode()
    limits = f"<slice><minimum>0</minimum><maximum>{coils - 1}</maximum></slice>"
    if told:
        xml = xml.replace("</encodingLimits>", f"{limits}</encodingLimits>")
    folder = write(tmp() / "a", kspace, ismrmrd_header=xml)
    with logged() as said:
        SliceDataset(folder, EVERYTHING)
    wrong = f"{kspace.shape}, read as (slices, rows, cols), but the header speaks of "
    found = [s for s in said if f"{wrong}{coils} receiver channels, and of one" in s]
    assert bool(found) != told


@given(seed=seeds, size=sizes, kind=st.sampled_from(["i2", ">f8", "u1"]))
def test_targets_of_other_real_types_are_taken(tmp, seed, size, kind):
    kspace = head(seed, size, size)
    kspace *= 200 / magnitudes(kspace).max()
    target = magnitudes(kspace)
    folder = write(tmp() / "a", kspace, reconstruction_esc=target.astype(kind))
    (dataset,) = SliceDataset(folder, EVERYTHING, epoch=0).files
    np.testing.assert_allclose(dataset.target_volume(), target, atol=1.01)


@given(rows=sizes, cols=sizes, axis=st.integers(0, 4), frames=st.integers(1, 3))
def test_several_contrasts_or_frames_are_to_be_separated(tmp, rows, cols, axis, frames):
    kspace = head(0, rows, cols, 2)
    several = np.stack([kspace] * frames, axis)
    folder = write(tmp() / "a", kspace, kspace=several)
    with pytest.raises(InputError, match="write a file for each contrast, repetition "):
        KSpaceFile.inspect(folder / "a.h5")


@given(rows=sizes, cols=sizes, coils=coils, slices=st.integers(1, 4))
def test_k_space_of_nothing_is_a_doubt(tmp, rows, cols, coils, slices):
    kspace = 0 * head(0, rows, cols, coils, slices)
    folder = write(tmp() / "a", kspace)
    with logged() as said:
        assert len(SliceDataset(folder, EVERYTHING)) == slices
    assert f"a.h5: k-space of slice {(slices - 1) // 3} is zero everywhere" in said[0]


@given(name=st.sampled_from(["multicoil_test", "singlecoil_train"]), seed=seeds)
def test_the_folder_counts_from_within_it_too(tmp, name, seed):
    kspace = head(seed, 16, 16, 0 if name.startswith("multi") else 3)
    folder = write(tmp() / name, kspace)
    with chdir(folder), pytest.raises(InputError, match=f"does not belong into {name}"):
        SliceDataset(Path(), EVERYTHING)


MASKS = {
    "(1, cols)": lambda mask, rows: mask[None],
    "(1, 1, cols, 1)": lambda mask, rows: mask[None, None, :, None],
    "(rows, cols)": lambda mask, rows: np.tile(mask, (rows, 1)),
    "bool": lambda mask, rows: mask.astype(bool),
}


@pytest.mark.parametrize("shape", MASKS)
@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, coils=coils)
def test_masks_of_other_shapes_are_taken(tmp, shape, seed, rows, cols, coils):
    at, mask = tmp(), np.zeros(cols, np.float32)
    mask[cols // 2 - 2 : cols // 2 + 2] = mask[::3] = 1
    kspace = head(seed, rows, cols, coils) * mask
    folder = write(at / "a", kspace, mask=MASKS[shape](mask, rows))
    np.testing.assert_array_equal(KSpaceFile.inspect(folder / "a.h5").mask, mask)
    assert_as_standard(at, folder, kspace, mask=mask)


@given(seed=seeds, rows=sizes, cols=sizes, row=st.integers(0, 15))
def test_masks_that_change_along_the_rows(tmp, seed, rows, cols, row):
    kspace = head(seed, rows, cols)
    mask = np.ones((rows, cols), np.float32)
    mask[row, :3] = 0
    folder = write(tmp() / "a", kspace, mask=mask)
    said = f"the mask of shape ({rows}, {cols}) is not the same for all rows"
    assert_refused(folder, said, f"k-space of shape {kspace.shape}")


def compound(*names):
    def change(kspace):
        pairs = np.empty(kspace.shape, [(name, np.float32) for name in names])
        pairs[names[0]], pairs[names[1]] = kspace.real, kspace.imag
        return pairs

    return change


COMPLEX = {
    "real/imag": compound("real", "imag"),
    "Re/Im": compound("Re", "Im"),
    "r/i": compound("r", "i"),
    "last axis": lambda kspace: np.stack([kspace.real, kspace.imag], -1),
    "double": lambda kspace: kspace.astype(np.complex128),
}


@pytest.mark.parametrize("kind", COMPLEX)
@costly(8)
@given(seed=seeds, rows=sizes, cols=sizes, coils=coils)
def test_complex_numbers_of_other_types_are_taken(tmp, kind, seed, rows, cols, coils):
    kspace, at = head(seed, 2 * rows, cols, coils), tmp()  # an oversampled readout
    folder = write(at / "a", kspace, kspace=COMPLEX[kind](kspace))
    assert_as_standard(at, folder, kspace)


@given(seed=seeds, rows=sizes, cols=sizes, coils=coils, axis=st.sampled_from([0, 1]))
def test_parts_along_another_axis_are_named(tmp, seed, rows, cols, coils, axis):
    kspace = head(seed, rows, cols, coils)
    parts = np.stack([kspace.real, kspace.imag], axis)
    folder = write(tmp() / "a", kspace, kspace=parts)
    with pytest.raises(InputError, match=f"if axis {axis} holds real and imaginary"):
        KSpaceFile.inspect(folder / "a.h5")


NOT_COMPLEX = {
    "compound": (compound("a", "b"), "name its fields real and imag, in this order"),
    "text in fields": (
        lambda kspace: np.zeros(kspace.shape, [("r", "S4"), ("i", "S4")]),
        "name its fields real and imag, in this order, and make both numbers",
    ),
    "vectors in fields": (
        lambda kspace: np.zeros(kspace.shape, [("r", "f4", 2), ("i", "f4", 2)]),
        "name its fields real and imag, in this order, and make both numbers",
    ),
    "imag first": (compound("imag", "real"), "name its fields real and imag, in this"),
    "one slice": (
        lambda kspace: np.stack([kspace[0].real, kspace[0].imag], -1),
        "if the last axis holds real and imaginary parts, insert one of slices",
    ),
    "alternating": (
        lambda kspace: np.stack([kspace.real, kspace.imag] * 2, -1),
        "if real and imaginary parts alternate along the last axis, combine",
    ),
    "text": (lambda kspace: np.full(kspace.shape, b"a"), "write it as complex64"),
    "magnitudes": (np.abs, "if these are magnitude images, give them to `simulate`"),
}


@pytest.mark.parametrize("kind", NOT_COMPLEX)
@given(seed=seeds, rows=sizes, cols=sizes)
def test_what_is_not_complex_is_named(tmp, kind, seed, rows, cols):
    change, said = NOT_COMPLEX[kind]
    kspace = head(seed, rows, cols)
    folder = write(tmp() / "a", kspace, kspace=change(kspace))
    with pytest.raises(InputError, match=rf"a\.h5.*must be complex: {said}"):
        KSpaceFile.inspect(folder / "a.h5")


@given(
    seed=seeds,
    value=st.sampled_from([b"text", "text", h5py.Empty("f"), True, [1j, 0], [2, 0]]),
)
def test_masks_of_other_types_are_no_damage(tmp, seed, value):
    folder = write(tmp() / "a", head(seed, 16, 16), mask=None)
    with h5py.File(folder / "a.h5", "r+") as file:
        file["mask"] = value
    with pytest.raises(InputError, match="the mask has values other than 0 and 1"):
        KSpaceFile.inspect(folder / "a.h5")


@given(
    value=st.sampled_from(
        [[b"a", b"b"], ["a", "b"], h5py.Empty("S1"), 3, b"", [1.0, 2]]
    )
)
def test_acquisitions_of_any_type_are_shown(tmp, value):
    kspace = head(0, 16, 16)
    folder = write(tmp() / "singlecoil_train", kspace, magnitudes(kspace))
    with h5py.File(folder / "a.h5", "r+") as file:
        file.attrs["acquisition"] = value
    (report,) = inspect_root(folder.parent)
    assert not report.defects
    ((scan, count),) = report.counts["acquisition/scanner"].items()
    assert scan.endswith("/unknown")
    assert "Empty" not in scan
    assert count == 1


@given(seed=seeds, rows=sizes, cols=sizes, extra=st.integers(1, 2))
def test_attributes_and_headers_of_one_entry(tmp, seed, rows, cols, extra):
    kspace = head(seed, rows, cols)
    target = magnitudes(kspace)
    folder = write(tmp() / "a", kspace, target)
    with h5py.File(folder / "a.h5", "r+") as file:
        header = file.pop("ismrmrd_header")[()]
        file["ismrmrd_header"] = np.array([header], dtype=object).astype("S")
        file.attrs["max"] = np.full((1,) * extra, target.max())
        file.attrs["acquisition"] = np.array(["T2"], h5py.string_dtype())
    file = KSpaceFile.inspect(folder / "a.h5")
    assert file.maximum == pytest.approx(target.max())
    assert file.scan == "T2/unknown"
    assert file.header == standard_header(kspace)
    assert len(SliceDataset(folder, EVERYTHING, epoch=0)) == 3


@given(seed=seeds, rows=sizes, cols=sizes)
def test_fewer_rows_than_columns_are_named_where_they_are_validated_on(
    tmp, seed, rows, cols
):
    assume(rows < cols)
    kspace = head(seed, rows, cols)
    folder = write(tmp() / "singlecoil_val", kspace, magnitudes(kspace))
    (report,) = inspect_root(folder.parent, quick=True)
    (defect,) = report.defects
    assert defect.startswith(f"{folder / 'a.h5'}: its target has fewer rows than col")
    assert f"({rows}, {cols})" in defect


# 7. words


@given(seed=seeds, parts=st.lists(st.sampled_from(["header", "mask", "x"]), max_size=2))
def test_links_to_nothing_are_named(tmp, seed, parts):
    kspace = head(seed, 16, 16)
    for name, external in product(
        ("kspace", "reconstruction_esc", "mask", "ismrmrd_header"), (True, False)
    ):
        folder = write(tmp() / "a", kspace, magnitudes(kspace))
        missing = "-".join([*parts, "gone.h5"])
        with h5py.File(folder / "a.h5", "r+") as file:
            file.pop(name, None)
            file[name] = (
                h5py.ExternalLink(missing, "/k") if external else h5py.SoftLink("/no")
            )
        with pytest.raises(InputError, match=f"{name}' is a link to ") as caught:
            KSpaceFile.inspect(folder / "a.h5")
        assert (missing in str(caught.value)) == external
        assert "copy it again" not in str(caught.value)


@given(seed=seeds, slices=st.integers(1, 4))
def test_virtual_data_without_their_source_are_named(tmp, seed, slices):
    """HDF5 reads zeros there."""
    kspace = head(seed, 16, 16, slices=slices)
    folder = write(tmp() / "a", kspace)
    layout = h5py.VirtualLayout(kspace.shape, np.complex64)
    layout[:] = h5py.VirtualSource("gone.h5", "kspace", kspace.shape)
    with h5py.File(folder / "a.h5", "r+") as file:
        del file["kspace"]
        file.create_virtual_dataset("kspace", layout)
    with pytest.raises(InputError, match=r"'kspace' is a link to gone\.h5"):
        KSpaceFile.inspect(folder / "a.h5")


@given(seed=seeds, filter_id=st.integers(40000, 50000))
def test_filters_that_are_not_installed_are_named(tmp, seed, filter_id):
    kspace = head(seed, 16, 16, slices=1)
    folder = write(tmp() / "a", kspace)
    with h5py.File(folder / "a.h5", "r+") as file:
        del file["kspace"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(kspace.shape)
        settings.set_filter(filter_id, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(kspace.shape)
        kind = h5py.h5t.py_create(kspace.dtype)
        stored = h5py.h5d.create(file.id, b"kspace", kind, space, settings)
        h5py.Dataset(stored).id.write_direct_chunk((0, 0, 0), kspace.tobytes())
    for said in refusals(folder):
        assert "is compressed by a filter that is not installed here" in said
        assert "copy it again" not in said


@given(seed=seeds, coils=coils)
def test_compressed_data_that_are_damaged_are_no_matter_of_filters(tmp, seed, coils):
    kspace = head(seed, 16, 16, coils)
    folder = write(tmp() / "a", kspace)
    with h5py.File(folder / "a.h5", "r+") as file:
        del file["kspace"]
        stored = file.create_dataset("kspace", data=kspace, compression="gzip")
        place = stored.id.get_chunk_info(0)
    content = bytearray((folder / "a.h5").read_bytes())
    content[place.byte_offset + 2 : place.byte_offset + place.size] = bytes(
        place.size - 2
    )
    (folder / "a.h5").write_bytes(content)
    for said in refusals(folder):
        assert "is compressed by a filter" not in said
        assert "cannot be read as HDF5" in said
        assert "copy it again" in said


def test_a_slice_that_does_not_fit_into_the_memory_is_named(tmp_path):
    folder = write(tmp_path / "a", head(0, 16, 16, 2))
    with h5py.File(folder / "a.h5", "r+") as file:
        del file["kspace"]
        shape, chunks = (3, 64, 1 << 20, 1 << 20), (1, 1, 16, 16)
        file.create_dataset("kspace", shape, np.complex64, chunks=chunks)
        del file["ismrmrd_header"]
    for said in refusals(folder):
        assert "does not fit into the memory (Unable to allocate 512. TiB" in said


HOLD = (
    "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); input()"
)


def test_a_file_that_is_being_written_is_named(tmp_path):
    folder = write(tmp_path / "a", head(0, 16, 16))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", HOLD, str(folder / "a.h5")]
    with subprocess.Popen(command, **pipes) as writer:
        writer.stdout.readline()
        try:
            for said in refusals(folder):
                assert "a.h5 is locked by another program" in said
                assert "copy it again" not in said
        finally:
            writer.communicate(b"\n")
