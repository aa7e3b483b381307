"""Files in the fastMRI layout: round trips, and every way in which they are broken."""

import h5py
import numpy as np
import pytest

from mri_example.data.checks import findings
from mri_example.data.files import (
    KSpaceFile,
    read_reconstruction,
    volume_paths,
    whole_file,
    write_kspace,
    write_reconstruction,
)
from mri_example.data.header import Header
from mri_example.errors import InputError

ROWS, COLS = 24, 14
HEADER = Header(encoded=(ROWS, COLS, 1), recon=(12, 10, 1), center=6, maximum=11)


def random_kspace(*shape):
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


@pytest.fixture
def path(tmp_path):
    """Return a complete single-coil file of three slices."""
    target = np.arange(3 * 12 * 10, dtype=np.float32).reshape(3, 12, 10)
    path = tmp_path / "volume.h5"
    write_kspace(path, random_kspace(3, ROWS, COLS), target, HEADER, {"patient_id": 7})
    return path


def change(path, **datasets):
    """Replace data sets; `None` removes one."""
    with h5py.File(path, "r+") as file:
        for name, value in datasets.items():
            file.pop(name, None)
            if value is not None:
                file[name] = value


def test_reading_inverts_writing(path):
    file = KSpaceFile.inspect(path)
    assert file.shape == (3, ROWS, COLS)
    assert file.slices == 3
    assert file.crop == (12, 10)
    assert file.padding == (1, 13)
    assert file.mask is None
    kspace = np.stack([file.kspace(i) for i in range(3)])
    np.testing.assert_array_equal(kspace, random_kspace(3, ROWS, COLS))
    assert kspace.dtype == np.complex64


def test_attributes_are_those_of_the_target(path):
    file = KSpaceFile.inspect(path)
    target = file.target_volume()
    assert file.attributes["patient_id"] == 7
    assert file.attributes["max"] == target.max()
    assert file.attributes["norm"] == pytest.approx(np.linalg.norm(target))


@pytest.mark.parametrize("value", ["big", [1.0, 2.0], np.nan, b"\xff"])
def test_an_attribute_that_is_no_number_is_named(path, value):
    with h5py.File(path, "r+") as file:
        file.attrs["max"] = value
    message = r"volume\.h5: the attribute 'max' is .*, but must be a number"
    with pytest.raises(InputError, match=message):
        KSpaceFile.inspect(path).maximum  # noqa: B018 (it reads the file)


def test_the_maximum_is_that_of_the_target_if_nothing_says_it(path):
    assert KSpaceFile.inspect(path).maximum == 3 * 12 * 10 - 1
    with h5py.File(path, "r+") as file:
        del file.attrs["max"]
    assert KSpaceFile.inspect(path).maximum == 3 * 12 * 10 - 1
    change(path, reconstruction_esc=None)
    assert KSpaceFile.inspect(path).maximum is None


def test_the_data_and_not_the_header_count_the_slices(path):
    header = Header((ROWS, COLS, 40), (12, 10, 40), center=6, maximum=11)
    change(path, ismrmrd_header=header.xml())
    assert KSpaceFile.inspect(path).slices == 3


def test_several_coils_are_read(path):
    kspace = random_kspace(3, 4, ROWS, COLS)
    target = np.ones((3, 12, 10), np.float32)
    change(path, kspace=kspace, reconstruction_esc=None, reconstruction_rss=target)
    file = KSpaceFile.inspect(path)
    assert (file.shape, file.target) == (kspace.shape, "reconstruction_rss")
    np.testing.assert_array_equal(file.kspace(1), kspace[1])


def test_a_file_for_the_leaderboard_has_a_mask_and_no_target(path):
    mask = np.arange(COLS) % 2 == 0
    change(path, mask=mask, reconstruction_esc=None)
    file = KSpaceFile.inspect(path)
    mask[:1] = mask[13:] = False  # beyond the limits in the header
    np.testing.assert_array_equal(file.mask, mask.astype(np.float32))
    assert file.crop == HEADER.recon[:2]
    with pytest.raises(InputError, match=r"volume\.h5 has no target"):
        file.target_volume()


@pytest.mark.parametrize(
    ("recon", "crop"),
    [((12, 10, 1), (12, 10)), ((16, 16, 1), (14, 14)), ((40, 10, 1), (24, 10))],
    ids=["fits", "wider than k-space: a square of its width", "more rows than k-space"],
)
def test_without_a_target_the_header_says_the_crop(path, recon, crop):
    header = Header((ROWS, COLS, 1), recon, center=7, maximum=13)
    change(path, reconstruction_esc=None, ismrmrd_header=header.xml())
    assert KSpaceFile.inspect(path).crop == crop


@pytest.mark.parametrize("keep_target", [True, False])
def test_without_a_header_the_assumption_is_stated(path, keep_target):
    crop = (12, 10) if keep_target else (14, 14)
    change(path, ismrmrd_header=None)
    if not keep_target:
        change(path, reconstruction_esc=None)
    file = KSpaceFile.inspect(path)
    assert (file.crop, file.padding) == (crop, (0, COLS))
    (doubt,) = (f for f in findings(file) if f.kind == "no header")
    assert doubt.doubt
    assert doubt.text.endswith(f"cropped to {crop[0]} x {crop[1]}")


OUTSIDE = Header((ROWS, 100, 1), (12, 10, 1), center=0, maximum=3).xml()
BROKEN = {
    "no kspace": ({"kspace": None}, "no data set 'kspace' but"),
    "rank": ({"kspace": random_kspace(2, 3)}, r"shape \(2, 3\), but must be"),
    "no slices": ({"kspace": random_kspace(0, 4, 4)}, r"shape \(0, 4, 4\)"),
    "magnitudes": (
        {"kspace": np.ones((3, 4, 4))},
        "float64 of shape .*be complex",
    ),
    "slices of target": ({"reconstruction_esc": np.ones((2, 8, 8))}, "all 3 slices"),
    "rank of target": ({"reconstruction_esc": np.ones((3, 8))}, "all 3 slices"),
    "complex target": ({"reconstruction_esc": 1j * np.ones((3, 8, 8))}, "real images"),
    "mask length": ({"mask": np.ones(COLS + 1)}, rf"shape \(15,\).* {COLS} columns"),
    "empty mask": ({"mask": np.zeros(COLS)}, "0 entries of it measured"),
    "header": ({"ismrmrd_header": b"<no"}, "ISMRMRD header cannot be read"),
    "padding": ({"ismrmrd_header": OUTSIDE}, "none of the 14 columns"),
}


@pytest.mark.parametrize(("datasets", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_with_what_is_wrong(path, datasets, message):
    change(path, **datasets)
    with pytest.raises(InputError, match=rf"volume\.h5.*{message}") as caught:
        KSpaceFile.inspect(path)
    assert "\n" not in str(caught.value)


def test_a_group_is_not_kspace(path):
    change(path, kspace=None)
    with h5py.File(path, "r+") as file:
        file.create_group("kspace")
    with pytest.raises(InputError, match="no data set 'kspace'"):
        KSpaceFile.inspect(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j * np.inf])
def test_kspace_that_is_not_finite_is_refused_with_its_slice(path, value):
    kspace = random_kspace(3, ROWS, COLS)
    kspace[2, 5, 5] = value
    change(path, kspace=kspace)
    file = KSpaceFile.inspect(path)
    file.kspace(1)
    with pytest.raises(InputError, match="slice 2 holds NaN or infinite"):
        file.kspace(2)


@pytest.mark.parametrize("length", [0, 4, 700, 3000])
def test_a_truncated_file_is_named(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"volume\.h5 cannot be read as HDF5"):
        KSpaceFile.inspect(path)


def test_a_file_of_another_format_is_named(path):
    path.write_text("patient,age\n1,64\n" * 100)
    with pytest.raises(InputError, match=r"volume\.h5 cannot be read as HDF5"):
        KSpaceFile.inspect(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing.h5 does not exist: check the path"):
        KSpaceFile.inspect(tmp_path / "missing.h5")
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        KSpaceFile.inspect(tmp_path)


def test_a_folder_lists_its_volumes_by_name(tmp_path):
    for name in ("b.h5", "a.hdf5", "._b.h5", "notes.txt", "c.h5.partial", "d.H5"):
        (tmp_path / name).touch()
    assert [p.name for p in volume_paths(tmp_path)] == ["a.hdf5", "b.h5", "d.H5"]
    (tmp_path / "e.h5").mkdir()
    with pytest.raises(InputError, match=r"e\.h5 is a folder with the name of a file"):
        volume_paths(tmp_path)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no \.h5, \.hdf5 files: name the one that does"
    ):
        volume_paths(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist: check the path"):
        volume_paths(tmp_path / "nowhere")


def test_a_reconstruction_is_read_as_written(tmp_path):
    volume = np.random.default_rng(0).random((2, 8, 8))
    write_reconstruction(tmp_path / "new" / "a.h5", volume)
    read = read_reconstruction(tmp_path / "new" / "a.h5")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, volume.astype(np.float32))


def test_a_file_without_reconstruction_is_named(path):
    with pytest.raises(InputError, match=r"volume\.h5 holds no data set 'reconstr"):
        read_reconstruction(path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(path, error):
    def interrupted():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise error

    before = path.read_bytes()
    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("length", [200, 201, 255])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path, length):
    path = tmp_path / f"{'a' * (length - 3)}.h5"
    write_reconstruction(path, np.ones((1, 8, 8)))
    assert read_reconstruction(path).shape == (1, 8, 8)
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written .*name too long"):
        write_reconstruction(tmp_path / f"{'a' * 300}.h5", np.ones((1, 8, 8)))
    assert not list(tmp_path.iterdir())


def test_braces_in_a_name_stay(tmp_path):
    (tmp_path / "a{}b").write_text("a file")
    with pytest.raises(InputError, match=r"a\{\}b/c\.h5 cannot be written \(.*a\{\}b"):
        write_reconstruction(tmp_path / "a{}b" / "c.h5", np.ones((1, 8, 8)))


def test_a_place_that_cannot_be_written_is_named(path):
    with pytest.raises(InputError, match=r"cannot be written .*choose another folder"):
        write_reconstruction(path / "inside" / "a.h5", np.ones((1, 8, 8)))
