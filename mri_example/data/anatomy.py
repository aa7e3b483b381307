"""Magnitude volumes to simulate from: the embedded heads, or NIfTI files."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mri_example.errors import InputError

Volume = NDArray[np.float32]

UPRIGHT = ("I", "P", "L")  # downwards, backwards, leftwards


def upright(voxels: NDArray[Any], affine: NDArray[Any]) -> Volume:
    """Turn voxels so that slices along their third axis stand upright.

    The top of the head, or the nose, is upwards; the patient's left, or the back of the
    head, to the right.

    Args:
        voxels: Of three axes, the third from slice to slice.
        affine: Where voxels are, `(4, 4)`: to the right, anterior, superior.

    Returns:
        `(slices, rows, cols)`.

    Examples:
        >>> upright(np.zeros((5, 4, 3)), np.eye(4)).shape
        (3, 4, 5)
    """
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(UPRIGHT)
    )
    turned = orientations.apply_orientation(voxels, turn)
    slices = np.moveaxis(turned, int(turn[2, 0]), 0)
    return np.ascontiguousarray(slices, dtype=np.float32)


def check_magnitudes(voxels: NDArray[Any], path: Path) -> None:
    """Make sure that voxels are what a magnitude image holds.

    Raises:
        InputError: If one is negative or not finite, or all are zero.
    """
    if not np.isfinite(voxels).all() or voxels.min() < 0 or voxels.max() <= 0:
        raise InputError(
            f"{path} holds values that are not magnitudes (negative, not finite, or "
            f"zero everywhere): take the magnitude image of the scan"
        )


EMBEDDED = Path(__file__).parent / "embedded" / "anatomy.npz"
SHA256 = "f6ff5cdc5c3c24e279b9042c0ff34e116c605db3d1a5e831195f3282b393c232"


def embedded_anatomy() -> dict[str, Volume]:
    """Return the embedded heads by name; `embedded/NOTICE` says where they come from.

    Returns:
        "sagittal", "coronal", "epi" and "average": magnitudes `(slices, rows, cols)`,
        upright.

    Raises:
        InputError: If the file is not the one that was shipped.
    """
    content = EMBEDDED.read_bytes() if EMBEDDED.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"{EMBEDDED} is damaged: check it out of the repository again")
    with np.load(io.BytesIO(content)) as archive:
        return {name: archive[name].astype(np.float32) for name in archive}


def nifti_volumes(path: Path) -> Iterator[tuple[str, Volume]]:
    """Read magnitudes from one NIfTI file, or from every one in a folder.

    Args:
        path: A `.nii` or `.nii.gz` file, or a folder of them. Of a series of volumes
            the first is taken.

    Yields:
        The name of a file without its ending, and its volume: slices along the third
        axis of the file, each upright as the header has it: the top of the head, or the
        nose, upwards; the patient's left, or the back of the head, to the right.

    Raises:
        InputError: If there is no such file, or it holds no usable magnitudes.
    """
    found = sorted(path.glob("*.nii*")) if path.is_dir() else [path]
    paths = {p.name.split(".nii")[0]: p for p in found if p.is_file()}
    if not found or len(paths) < len(found):
        raise InputError(
            f"{path} is neither a NIfTI file nor a folder of them, each with another "
            f"name: check the path (dcm2niix converts DICOM)"
        )
    for name, file in paths.items():
        yield name, _volume(file)


def _volume(path: Path) -> Volume:
    image, voxels = _read(path)
    if voxels.ndim == 4 and voxels.size:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or not voxels.size or voxels.dtype.kind not in "uif":
        raise InputError(
            f"{path} holds {voxels.dtype} of shape {voxels.shape}, but must hold a "
            f"volume of real magnitudes: convert it"
        )
    check_magnitudes(voxels, path)
    affine = np.nan_to_num(image.affine)
    if not np.linalg.det(affine):
        raise InputError(
            f"{path} does not say where its voxels are (its affine is singular), so it "
            f"cannot be turned upright: set the affine of the scan"
        )
    return upright(voxels, affine)


def _read(path: Path) -> tuple[Any, NDArray[Any]]:
    try:
        image: Any = nibabel.load(path)
        return image, np.asanyarray(image.dataobj)
    except (
        ImageFileError,
        HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise InputError(
            f"{path} cannot be read as NIfTI ({error}): copy it again"
        ) from error
