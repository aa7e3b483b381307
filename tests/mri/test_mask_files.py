"""Masks of one's own: both shapes, and what is wrong with others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import auto_cli

from mri_example.errors import InputError
from mri_example.masks import Masks
from mri_example.training.data import SliceData

COLUMNS = np.array([1, 0, 0, 1, 1, 1, 0, 1])
VOLUME = np.stack([COLUMNS, 1 - COLUMNS, COLUMNS])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
@pytest.mark.parametrize("values", [COLUMNS, VOLUME], ids=["columns", "volume"])
def test_masks_are_read(tmp_path, dtype, values) -> None:
    np.save(tmp_path / "m.npy", values.astype(dtype))
    mask, low = Masks(file=str(tmp_path / "m.npy"))((2, 3, 5, 8), seed=1)
    assert mask.dtype == torch.float32
    assert mask.shape == (1, 1 if values.ndim == 1 else 3, 1, 8)
    assert mask.flatten().tolist() == values.flatten().tolist()
    assert low == (3 if values.ndim == 1 else 0)


def test_masks_as_fastmri_shapes_them(tmp_path) -> None:
    np.save(tmp_path / "m.npy", COLUMNS.reshape(1, 1, 8, 1))
    assert Masks(file=str(tmp_path / "m.npy"))((4, 8))[0].shape == (1, 8)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31))
def test_a_drawn_mask_comes_back(tmp_path_factory, cols, slices, seed) -> None:
    drawn, _ = Masks("random", [0.1], [1])((slices, cols), seed=seed)
    path = tmp_path_factory.mktemp("masks") / "mask.npy"
    np.save(path, drawn.numpy())
    assert Masks(file=str(path))((slices, cols))[0].equal(drawn)


@given(cols=st.integers(24, 60), seed=st.integers(0, 2**31), shifted=st.booleans())
def test_masks_whose_center_comes_first(tmp_path_factory, cols, seed, shifted) -> None:
    """They would leave out the center of k-space, without a word."""
    drawn, _ = Masks("random", [0.25], [4])((4, cols), seed=seed)
    columns = drawn.flatten().numpy()
    path = tmp_path_factory.mktemp("masks") / "mask.npy"
    np.save(path, np.fft.ifftshift(columns) if shifted else columns)
    if shifted:
        with pytest.raises(
            InputError, match=r"at both ends, .*: apply numpy.fft.fftsh"
        ):
            Masks(file=str(path))
        return
    assert Masks(file=str(path))((4, cols))[0].equal(drawn)


@pytest.mark.parametrize(
    ("low", "columns"),
    [(8, "1 1 1 1 1 1 1 1"), (0, "1 1 1 1 0 1 1 1"), (2, "1 0 1 0 1 1 0 1")],
)
def test_the_center_ends_at_the_first_gap(tmp_path, low, columns) -> None:
    np.save(tmp_path / "m.npy", np.array(columns.split(), float))
    assert Masks(file=str(tmp_path / "m.npy"))((4, 8))[1] == low


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        (COLUMNS, (4, 9), "mask of 8 columns, but .* has 9 columns"),
        (VOLUME, (1, 3, 4, 9), "3 slices and 8 columns, but .* 3 slices and 9 columns"),
        (VOLUME, (1, 2, 4, 8), "3 slices and 8 columns, but .* 2 slices and 8 columns"),
        (VOLUME, (3, 4, 8), "for the volumes of 3-D acquisitions"),
    ],
)
def test_kspace_of_another_size(tmp_path, values, shape, message) -> None:
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(InputError, match=message):
        Masks(file=str(tmp_path / "m.npy"))(shape)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (COLUMNS * 2, "a mask is 0 or 1"),
        (COLUMNS * np.nan, "a mask is 0 or 1"),
        (COLUMNS * 0, "measures nothing"),
        (COLUMNS[:0], "measures nothing"),
        (np.ones((2, 2, 2)), r"of shape \(2, 2, 2\)"),
        (COLUMNS * 1j, "holds complex128 of shape .*but a mask is 0 or 1"),
        (np.array(["a"]), "holds <U1"),
        (np.array([None]), "cannot be read as .npy"),
    ],
)
def test_files_that_hold_no_mask(tmp_path, values, message) -> None:
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(InputError, match=message):
        Masks(file=str(tmp_path / "m.npy"))


@pytest.mark.parametrize("name", ["m.npy", "m.h5", "m.txt", "m"])
@pytest.mark.parametrize("content", [b"", b"not a mask", b"\x00\xff\xfe" * 50])
def test_damaged_files(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        Masks(file=str(tmp_path / name))


def test_an_archive_is_no_mask(tmp_path) -> None:
    np.savez(tmp_path / "m.npz", mask=COLUMNS)
    with pytest.raises(
        InputError, match=r"cannot be read as \.npy .*: write the mask with"
    ):
        Masks(file=str(tmp_path / "m.npz"))


def test_missing_files(tmp_path) -> None:
    with pytest.raises(InputError, match=r"m.npy does not exist"):
        Masks(file=str(tmp_path / "m.npy"))
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        Masks(file=str(tmp_path))


def test_the_command_line_takes_a_file(tmp_path) -> None:
    np.save(tmp_path / "m.npy", COLUMNS)
    arguments = [f"--masks.file={tmp_path / 'm.npy'}"]

    def command(masks: Masks = Masks()) -> Masks:
        return masks

    config = auto_cli(command, args=arguments, as_positional=False)
    mask, _ = config((5, 8))
    assert mask.flatten().tolist() == COLUMNS.tolist()


def test_checkpoints_hold_the_name_of_the_file(tmp_path) -> None:
    np.save(tmp_path / "m.npy", COLUMNS)
    for file in (str(tmp_path / "m.npy"), None):
        assert SliceData(Path(), Masks(file=file)).describe()["file"] == file
