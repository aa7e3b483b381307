"""Raw files that cannot be converted, and what is said of them."""

import h5py
import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ismrmrd import xsd

from mri_example.cli import main
from mri_example.data.convert import convert_raw
from mri_example.errors import InputError
from tests.mri.test_raw import (
    COILS,
    COLS,
    ROWS,
    SLICES,
    header,
    lines,
    placed,
    random_kspace,
    write,
)


def twice(**values):
    kspace = random_kspace()
    return lines(kspace) + lines(kspace, **values)


def without(z):
    return [one for one in lines(random_kspace(4)) if one.idx.slice != z]


NAN = np.full((SLICES, COILS, ROWS, COLS), np.nan, np.complex64)
NOISE = {"flags": [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]}
SHORT = random_kspace(rows=ROWS - 4)
RADIAL = {"trajectory": xsd.trajectoryType.RADIAL}
UNUSABLE = {
    "radial": (lines(random_kspace()), header(**RADIAL), "trajectory that is radial"),
    "encodings": (lines(random_kspace()), header(encodings=2), ": 2 encodings"),
    "contrasts": (twice(contrast=1), None, ": 2 contrasts, but"),
    "repetitions": (twice(repetition=4), None, ": 2 repetitions, but"),
    "3-D": (twice(kspace_encode_step_2=1), None, "2 partitions of a 3-D encoding"),
    "the same twice": (twice(), None, "2 lines of slice 0, phase encoding 0 and aver"),
    "noise alone": (lines(random_kspace(), **NOISE), None, "no lines of an image"),
    "backwards": (
        twice(flags=[ismrmrd.ACQ_IS_REVERSE]),
        None,
        "lines with a reversed readout",
    ),
    "compressed": (
        twice(flags=[ismrmrd.ACQ_COMPRESSION1]),
        None,
        "lines with a compression",
    ),
    "coils": (
        lines(random_kspace(), range(6)) + lines(random_kspace(coils=3), range(6, 12)),
        None,
        "lines of active_channels 2 and 3",
    ),
    "samples": (lines(random_kspace(rows=20)), None, "lines of 20 samples of 2 coils"),
    "center": (lines(SHORT, center_sample=1), None, "sample 1 in the middle"),
    "steps": (lines(random_kspace()), header(maximum=9), "says at most 9"),
    "matrix": (lines(random_kspace()), header((ROWS, 8)), "from 0 to 11, but"),
    "a slice": (without(2), None, "no lines of slice [2], but"),
    "masks": (lines(random_kspace())[:-1], None, "other columns than slice 0"),
    "NaN": (lines(NAN), None, "NaN in acquisition 0"),
}


@pytest.mark.parametrize(
    ("acquisitions", "xml", "message"), UNUSABLE.values(), ids=UNUSABLE.keys()
)
def test_what_cannot_be_converted_is_named(
    tmp_path, capsys, acquisitions, xml, message
):
    path = write(tmp_path / "scan.h5", list(acquisitions), xml, shuffle=False)
    out = tmp_path / "out"
    assert main(["convert", f"--source={path}", f"--output={out}"]) == 2
    err = capsys.readouterr().err
    assert "scan.h5" in err
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


def damaged(path, change):
    with h5py.File(path, "r+") as file:
        change(file["dataset"])


def replace(name, value):
    def change(group):
        del group[name]
        if value is not None:
            group[name] = value

    return change


def shorten(group):
    one = group["data"][3]
    one["head"]["number_of_samples"] = ROWS - 1
    one["data"] = one["data"][:7]
    group["data"][3] = one


DAMAGE = {
    "no header": (replace("xml", None), ": 0 ISMRMRD scans"),
    "no data": (replace("data", None), ": 0 ISMRMRD scans"),
    "images": (replace("data", np.ones((3, 4))), "not acquisitions of ISMRMRD"),
    "no XML": (
        replace("xml", [b"<no"]),
        "the header does not say the sizes of the scan",
    ),
    "no limits": (
        replace("xml", [header().replace("encodingLimits", "limits").encode()]),
        "does not say the sizes",
    ),
    "short line": (shorten, "lines of number_of_samples 15 and 16"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files_are_named(tmp_path, change, message):
    path = write(tmp_path / "scan.h5", lines(random_kspace()))
    damaged(path, change)
    with pytest.raises(InputError, match=rf"scan\.h5.*{message}"):
        convert_raw(path, tmp_path / "out")


def test_a_line_that_lacks_samples_is_named(tmp_path):
    path = write(tmp_path / "scan.h5", lines(random_kspace()))
    with h5py.File(path, "r+") as file:
        one = file["dataset/data"][3]
        one["data"] = one["data"][:7]
        file["dataset/data"][3] = one
    with pytest.raises(InputError, match=r"cannot be read as HDF5"):
        convert_raw(path, tmp_path / "out")


def test_files_that_are_missing_or_of_another_format_are_named(tmp_path):
    (tmp_path / "text.h5").write_text("no raw data " * 99)
    (tmp_path / "empty").mkdir()
    for name, message in {
        "missing.h5": "does not exist",
        "text.h5": "cannot be read as HDF5",
        "empty": "holds no .h5, .hdf5, .mrd, .ismrmrd files",
    }.items():
        with pytest.raises(InputError, match=message):
            convert_raw(tmp_path / name, tmp_path / "out")


def limited(first: int, last: int) -> str:
    """Return a header that says which slices the scan has."""
    document = xsd.CreateFromDocument(header())
    limits = document.encoding[0].encodingLimits
    limits.slice = xsd.limitType(minimum=first, maximum=last, center=0)
    return xsd.ToXML(document)


@given(first=st.integers(0, 3), there=st.integers(1, 4), more=st.integers(-1, 3))
def test_slices_that_the_header_counts_are_not_lost(
    first, there, more, tmp_path_factory
) -> None:
    """A file that was cut off would become a whole volume of fewer slices."""
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    found = [
        one for one in lines(random_kspace(first + there)) if one.idx.slice >= first
    ]
    write(path, found, limited(0, max(0, there + more - 1)))
    out = path.parent / "out"
    if more <= 0:
        assert convert_raw(path, out) == [out / "scan.h5"]
        return
    said = (
        rf"scan\.h5: lines of {there} slices, but the header speaks of {there + more}"
    )
    with pytest.raises(InputError, match=said):
        convert_raw(path, out)
    assert not out.exists()


@given(step=st.floats(0.1, 9), axis=st.integers(0, 2), across=st.integers(1, 2))
def test_positions_that_are_not_along_the_normal(step, axis, across, tmp_path_factory):
    """The order of the slices would be that of their counter, without a word."""
    normal = np.eye(3)[axis]
    acquisitions = placed(random_kspace(), np.zeros(SLICES), normal)
    for one in acquisitions:
        one.position[(axis + across) % 3] = step * one.idx.slice
    path = write(tmp_path_factory.mktemp("raw") / "scan.h5", acquisitions)
    with pytest.raises(InputError, match="are apart, but not along slice_dir"):
        convert_raw(path, path.parent / "out")


@given(kind=st.sampled_from(["trajectory", "encoding"]), number=st.integers(1, 3))
def test_lines_that_contradict_the_encoding_of_the_header(
    kind, number, tmp_path_factory
) -> None:
    acquisitions = lines(random_kspace())
    for one in acquisitions:
        samples = one.data.copy()
        if kind == "encoding":
            one.encoding_space_ref = number
        else:
            one.resize(ROWS, COILS, number)
            one.data[:] = samples
    path = write(tmp_path_factory.mktemp("raw") / "scan.h5", acquisitions)
    said = {"encoding": "lines with a second", "trajectory": "lines with a trajectory"}
    with pytest.raises(InputError, match=rf"scan\.h5: {said[kind]}.*the header "):
        convert_raw(path, path.parent / "out")
