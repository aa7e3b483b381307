"""The frames of one DICOM file, each with its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from mri_example.errors import InputError

OTHER_PARTS = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "MIXED"}


@dataclass(frozen=True, eq=False)
class Frame:
    """One image.

    Attributes:
        path: The file that it stands in.
        series: The unique identifier of the series.
        pixels: After rescaling, `(rows, cols)`.
        position: Of the first pixel: to the left, posterior, superior, in millimeters.
        right: Direction from column to column, in the same coordinates.
        down: Direction from row to row.
    """

    path: Path
    series: str
    pixels: NDArray[np.float32]
    position: NDArray[np.float64]
    right: NDArray[np.float64]
    down: NDArray[np.float64]


def read_frames(path: Path) -> list[Frame]:
    """Read one image, or the many of an enhanced file.

    Raises:
        InputError: If the file is no MR magnitude image in gray, is compressed and
            there is no decoder for it, or does not say where its images are.
    """
    try:
        return _frames(path)
    except InputError:
        raise
    except Exception as error:  # whatever a parser meets in a damaged file
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as DICOM ({reason}): copy it again, or move what "
            f"is no image elsewhere"
        ) from error


def _frames(path: Path) -> list[Frame]:
    dataset = dcmread(path)
    _check_kind(dataset, path)
    _check_decoder(dataset, path)
    pixels = dataset.pixel_array
    images = pixels if pixels.ndim == 3 else pixels[None]
    return [_frame(dataset, i, image, path) for i, image in enumerate(images)]


def _check_kind(dataset: Dataset, path: Path) -> None:
    gray = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if gray != "MONOCHROME2":
        raise InputError(
            f"{path} holds {gray} pixels, but must be MONOCHROME2: take the magnitude "
            f"image in gray, not a picture of it in color or negative"
        )
    modality = dataset.get("Modality", "unknown")
    if "PixelData" not in dataset or modality != "MR":
        raise InputError(
            f"{path} is no MR image (modality {modality}): leave it out of the folder"
        )
    if "MOSAIC" in _parts(dataset):
        raise InputError(
            f"{path} holds a mosaic, all slices side by side in one image: export the "
            f"series as one image a slice, or as an enhanced file"
        )
    parts = _parts(dataset) & OTHER_PARTS
    if parts:
        raise InputError(
            f"{path} holds the {sorted(parts)[0]} part of an image: take the magnitude "
            f"image of the scan"
        )


def _parts(dataset: Dataset) -> set[str]:
    """Return what a file calls its image after original or derived, and primary."""
    kind = dataset.get("ImageType") or []
    named = [] if isinstance(kind, str) else kind[2:]
    return {*named, str(dataset.get("ComplexImageComponent"))}


def _check_decoder(dataset: Dataset, path: Path) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not _has_decoder(syntax):
        raise InputError(
            f"{path} is compressed ({syntax.name}), and no decoder for it is "
            f"installed: decompress it, or install the package pylibjpeg[all]"
        )


def _has_decoder(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _frame(dataset: Dataset, index: int, image: NDArray[Any], path: Path) -> Frame:
    def find(sequence: str, keyword: str) -> Any:
        return _attribute(dataset, index, sequence, keyword)

    position = find("PlanePositionSequence", "ImagePositionPatient")
    directions = find("PlaneOrientationSequence", "ImageOrientationPatient")
    if len(position or []) != 3 or len(directions or []) != 6:
        raise InputError(
            f"{path} does not say where image {index} is in the patient, so slices "
            f"cannot be sorted: convert the series to NIfTI"
        )
    slope = find("PixelValueTransformationSequence", "RescaleSlope")
    offset = find("PixelValueTransformationSequence", "RescaleIntercept")
    scaled = image * float(1 if slope is None else slope) + float(offset or 0)
    right, down = np.array(directions, dtype=np.float64).reshape(2, 3)
    series = str(dataset.get("SeriesInstanceUID"))
    where = np.array(position, dtype=np.float64)
    return Frame(path, series, scaled.astype(np.float32), where, right, down)


def _attribute(dataset: Dataset, index: int, sequence: str, keyword: str) -> Any:
    """Look it up among the groups of the frame, those of all frames, and the file."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*own[index : index + 1], *shared[:1]):
        for group in groups.get(sequence) or []:
            if keyword in group:
                return group[keyword].value
    return dataset.get(keyword)
