"""Heads to simulate from, in DICOM files: one a slice, or one of many frames."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from mri_example.cli import main
from mri_example.data import (
    KSpaceFile,
    dicom_volumes,
    magnitude_volumes,
)
from mri_example.data.upright import UPRIGHT

PAIRS = ("IS", "PA", "LR")  # each axis of an upright head, and its opposite
LEFT_POSTERIOR_SUPERIOR = {"L": 0, "P": 1, "S": 2, "R": 0, "A": 1, "I": 2}
SERIES, OTHER = generate_uid(), generate_uid()


def direction(code: str) -> np.ndarray:
    vector = np.zeros(3)
    vector[LEFT_POSTERIOR_SUPERIOR[code]] = 1 if code in "LPS" else -1
    return vector


def image(pixels: np.ndarray, **attributes) -> Dataset:
    """Return a file of one slice, or of many, in 16 bits."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    values = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelData": pixels.astype("<u2").tobytes(),
    } | attributes
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def save(path: Path, pixels: np.ndarray, **attributes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image(pixels, **attributes).save_as(path, enforce_file_format=True)
    return path


def stack(folder: Path, volume: np.ndarray, **attributes) -> Path:
    """Write axial slices, feet first, under names in another order."""
    for z, pixels in enumerate(volume):
        place = {"ImagePositionPatient": [-9.5, 3.25, 2.5 * z - 4]}
        save(folder / f"IM{(7 * z) % len(volume)}", pixels, **place | attributes)
    return folder


def head(slices: int = 5) -> np.ndarray:
    voxels = np.random.default_rng(0).integers(1, 2000, (slices, 6, 4))
    return voxels.astype(np.uint16)


def stored_as(codes):
    """Store a head (axes down, back, left) along other axes."""
    whole = np.arange(1, 2 * 3 * 4 + 1, dtype=np.uint16).reshape(2, 3, 4)
    axes = [next(i for i, pair in enumerate(PAIRS) if c in pair) for c in codes]
    steps = [1 if c in UPRIGHT else -1 for c in codes]
    return whole, whole.transpose(axes)[tuple(slice(None, None, s) for s in steps)]


@pytest.mark.parametrize(("third", "pair"), list(enumerate(PAIRS)))
def test_slices_are_upright_however_they_are_stored(tmp_path, third, pair):
    others = [other for other in PAIRS if other != pair]
    for order in (others, others[::-1]):
        for codes in itertools.product(pair, *order):
            whole, stored = stored_as(codes)
            along, down, right = map(direction, codes)
            folder = tmp_path / "".join(codes)
            for i, pixels in enumerate(stored):
                save(
                    folder / f"{-i % len(stored)}.dcm",
                    pixels,
                    ImagePositionPatient=list(3.0 * i * along),
                    ImageOrientationPatient=[*right, *down],
                )
            ((name, volume),) = dicom_volumes(folder)
            assert name == folder.name
            assert volume.dtype == np.float32
            np.testing.assert_array_equal(volume, np.moveaxis(whole, third, 0))


def test_dicom_and_nifti_give_the_same_volume(tmp_path):
    voxels = head()
    stack(tmp_path / "dicom", voxels)
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    nifti = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    nifti.to_filename(tmp_path / "a.nii")
    ((_, one),) = magnitude_volumes(tmp_path / "dicom")
    ((_, other),) = magnitude_volumes(tmp_path / "a.nii")
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, voxels[::-1])


def test_oblique_slices_are_sorted_along_their_normal(tmp_path):
    turn = np.linalg.qr(np.eye(3) + 0.2 * np.ones((3, 3)))[0]
    right, down = turn[:, 0] * np.sign(turn[0, 0]), turn[:, 1] * np.sign(turn[1, 1])
    normal = np.cross(right, down)
    voxels = head()
    for z, pixels in enumerate(voxels):
        save(
            tmp_path / f"s/{(3 * z) % 5}",
            pixels,
            ImagePositionPatient=[f"{x:.9g}" for x in 40 * right + 2 * z * normal],
            ImageOrientationPatient=[f"{x:.9g}" for x in (*right, *down)],
        )
    ((_, volume),) = dicom_volumes(tmp_path / "s")
    np.testing.assert_array_equal(volume, voxels[::-1])


def test_pixels_are_rescaled_slice_by_slice(tmp_path):
    voxels = head(2)
    for z, slope in enumerate((0.5, 4.0)):
        save(
            tmp_path / f"s/{z}",
            voxels[z],
            ImagePositionPatient=[0, 0, z],
            RescaleSlope=slope,
            RescaleIntercept=3,
        )
    ((_, volume),) = dicom_volumes(tmp_path / "s")
    expected = voxels * np.array([0.5, 4.0]).reshape(2, 1, 1) + 3
    np.testing.assert_array_equal(volume, expected[::-1].astype(np.float32))


def group(**sequences) -> Dataset:
    outer = Dataset()
    for name, values in sequences.items():
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        setattr(outer, name, [inner])
    return outer


def test_a_file_of_many_frames_is_a_series(tmp_path):
    voxels = head()
    frames = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [0, 0, 2 * z]},
            PixelValueTransformationSequence={
                "RescaleSlope": 1 + z,
                "RescaleIntercept": 0,
            },
        )
        for z in range(5)
    ]
    orientation = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    save(
        tmp_path / "enhanced.dcm",
        voxels,
        NumberOfFrames=5,
        PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=[group(PlaneOrientationSequence=orientation)],
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
    )
    ((name, volume),) = dicom_volumes(tmp_path / "enhanced.dcm")
    assert name == "enhanced"
    scaled = voxels * np.arange(1.0, 6).reshape(5, 1, 1)
    np.testing.assert_array_equal(volume, scaled[::-1].astype(np.float32))


def test_each_folder_of_a_folder_is_a_volume(tmp_path):
    for name in ("b", "a"):
        stack(tmp_path / name, head())
    (tmp_path / "a" / ".hidden").touch()
    (tmp_path / "a" / "DICOMDIR").touch()
    assert [name for name, _ in dicom_volumes(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm"])
def test_a_scan_of_a_scanner_is_simulated_from(tmp_path, capsys, name):
    source, out = get_testdata_file(name, download=False), tmp_path / "out"
    options = ("--source", source, "--output", str(out), "--simulation.size", "32")
    assert main(["simulate", *options]) == 0
    assert "not raw data" in capsys.readouterr().out
    file = KSpaceFile.inspect(out / name.replace("dcm", "h5"))
    assert file.shape == (1, 64, 32)
    assert file.attributes["simulated"].startswith("k-space simulated from magnitude")
    ((_, volume),) = dicom_volumes(Path(source))
    pixels = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    np.testing.assert_array_equal(volume[0], pixels)
