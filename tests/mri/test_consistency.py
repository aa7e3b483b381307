"""Files whose parts contradict each other are refused, by every command alike."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mri_example.data import KSpaceFile, SliceDataset, write_kspace
from mri_example.data.checks import check_header
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.masks import MaskFunction
from mri_example.reconstruct import reconstruct, zero_filled

EVERYTHING = MaskFunction("random", [1.0], [1])
sizes = st.integers(8, 24)


def write(folder, rows, cols, encoded, trajectory="", mask=None):
    kspace = np.ones((2, rows, cols), np.complex64)
    header = Header(
        (*encoded, 1), (8, 8, 1), encoded[1] // 2, encoded[1] - 1, "", trajectory
    )
    write_kspace(folder / "a.h5", kspace, None, header, {}, mask)
    return folder


def assert_refused(folder, message) -> None:
    """Assert that training, reconstruction and check refuse the file by name."""
    commands = [
        lambda: SliceDataset(folder, EVERYTHING, epoch=0),
        lambda: SliceDataset(folder, EVERYTHING),
        lambda: reconstruct(zero_filled, folder, folder / "out", EVERYTHING),
        lambda: check_header(KSpaceFile.inspect(folder / "a.h5")),
    ]
    for command in commands:
        with pytest.raises(InputError, match=rf"a\.h5: {message}"):
            command()
    assert not (folder / "out").exists()


@given(rows=sizes, cols=sizes)
def test_swapped_axes(tmp_path_factory, rows, cols) -> None:
    """K-space of rows and columns exchanged would lose columns without a word."""
    assume(rows != cols)
    folder = write(tmp_path_factory.mktemp("data"), rows, cols, encoded=(cols, rows))
    message = f"the header speaks of {rows} encoded columns, but k-space has {cols},"
    assert_refused(folder, message)


@given(size=sizes, trajectory=st.sampled_from(["radial", "spiral", "goldenangle"]))
def test_trajectories_that_are_not_cartesian(tmp_path_factory, size, trajectory):
    folder = write(
        tmp_path_factory.mktemp("data"), size, size, (size, size), trajectory
    )
    assert_refused(folder, f"the header says that the trajectory is {trajectory}")


@given(rows=sizes, cols=sizes, trajectory=st.sampled_from(["", "cartesian"]))
def test_headers_that_agree_are_taken(tmp_path_factory, rows, cols, trajectory) -> None:
    folder = write(
        tmp_path_factory.mktemp("data"), rows, cols, (rows, cols), trajectory
    )
    assert len(SliceDataset(folder, EVERYTHING, epoch=0)) == 2
