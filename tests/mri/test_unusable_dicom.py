"""DICOM series that cannot be simulated from, and what is said of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from mri_example.cli import main
from mri_example.data import (
    dicom_volumes,
    magnitude_volumes,
)
from mri_example.errors import InputError
from tests.mri.test_dicom import OTHER, head, save, stack

WRONG = {
    "another series": ({"SeriesInstanceUID": OTHER}, "is of series .* folder of its o"),
    "color": (
        {
            "PhotometricInterpretation": "RGB",
            "SamplesPerPixel": 3,
            "PlanarConfiguration": 0,
        },
        "holds RGB pixels, but must be MONOCHROME2",
    ),
    "negative": ({"PhotometricInterpretation": "MONOCHROME1"}, "holds MONOCHROME1"),
    "another modality": ({"Modality": "CT"}, "no MR image .modality CT"),
    "no pixels": ({"PixelData": None}, "is no MR image"),
    "mosaic": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]},
        "holds a mosaic, .* one image a slice",
    ),
    "phase": ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "NONE"]}, "holds the P part"),
    "phase, enhanced": ({"ComplexImageComponent": "PHASE"}, "holds the PHASE part"),
    "no position": ({"ImagePositionPatient": None}, "does not say where image 0"),
    "no direction": ({"ImageOrientationPatient": None}, "does not say where image 0"),
    "direction": (
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        "in another direction",
    ),
    "same place": ({"ImagePositionPatient": [0, 0, 1]}, "at the same place"),
    "missing slice": ({"ImagePositionPatient": [0, 0, 3]}, "lie 2 mm, elsewhere 1:"),
    "few pixels": ({"PixelData": bytes(10)}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_part_of_a_series_is_named(tmp_path, changes, message):
    for z in range(2):
        save(tmp_path / f"s/{z}", head()[z], ImagePositionPatient=[0, 0, z])
    place = {"ImagePositionPatient": [0, 0, 2]}
    save(tmp_path / "s/odd.dcm", head()[2], **place | changes)
    with pytest.raises(InputError, match=rf"odd\.dcm.*{message}") as caught:
        list(dicom_volumes(tmp_path / "s"))
    assert "\n" not in str(caught.value)


def test_slices_of_another_size_are_named(tmp_path):
    stack(tmp_path / "s", head())
    save(tmp_path / "s/odd", np.ones((3, 3)), ImagePositionPatient=[0, 0, 99])
    with pytest.raises(InputError, match=r"odd is of size \(3, 3\), but"):
        list(dicom_volumes(tmp_path / "s"))


def test_empty_images_are_refused(tmp_path):
    stack(tmp_path / "s", 0 * head())
    with pytest.raises(InputError, match="not magnitudes"):
        list(dicom_volumes(tmp_path / "s"))


def test_values_below_zero_are_refused(tmp_path):
    stack(tmp_path / "s", head(), RescaleIntercept=-1024, RescaleSlope=1)
    with pytest.raises(InputError, match="not magnitudes"):
        list(dicom_volumes(tmp_path / "s"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.floats(0, 1), st.lists(st.tuples(st.integers(132, 640), st.integers(0, 255))))
def test_a_damaged_file_is_read_or_named(tmp_path_factory, share, changes):
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(save(folder / "whole.dcm", head()[0]).read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    keep = len(content) if changes else int(share * len(content))
    (folder / "a.dcm").write_bytes(content[:keep])
    message = refusal(folder / "a.dcm")
    assert message == "" or ("a.dcm" in message and "\n" not in message)


def refusal(path: Path) -> str:
    try:
        list(dicom_volumes(path))
    except InputError as error:
        return str(error)
    return ""


def test_compression_without_a_decoder_is_named(tmp_path):
    path = tmp_path / "a.dcm"
    shutil.copy(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"), path)
    with pytest.raises(InputError, match=r"a\.dcm is compressed \(JPEG-LS Lossless.*"):
        list(dicom_volumes(path))


def test_other_formats_and_missing_files_end_in_one_sentence(tmp_path, capsys):
    (tmp_path / "s").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "s/notes.txt").write_text("no image")
    for source, message in {
        "s": "notes.txt cannot be read as DICOM",
        "empty": "neither a DICOM file nor a folder of a series",
        "missing": "missing does not exist",
        "": "neither a DICOM file nor a folder of a series",
    }.items():
        options = ("--source", str(tmp_path / source), "--output", str(tmp_path / "o"))
        assert main(["simulate", *options]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_folder_of_both_formats_is_ambiguous(tmp_path):
    stack(tmp_path, head())
    (tmp_path / "a.nii").touch()
    (tmp_path / "b.dcm").touch()
    with pytest.raises(InputError, match="holds NIfTI and DICOM files: separate"):
        magnitude_volumes(tmp_path)
