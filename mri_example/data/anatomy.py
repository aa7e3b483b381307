"""Magnitude volumes to simulate from: the embedded heads, or NIfTI files."""

import hashlib
import io
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import affines, orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.filename_parser import splitext_addext
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from scipy import ndimage

from mri_example.errors import named_files, require, reworded

LOG = logging.getLogger(__name__)
Volume = NDArray[np.float32]
UPRIGHT = ("I", "P", "L")  # downwards, backwards, leftwards
EMBEDDED = Path(__file__).parent / "embedded" / "anatomy.npz"
SHA256 = "f6ff5cdc5c3c24e279b9042c0ff34e116c605db3d1a5e831195f3282b393c232"
SQUARE = 0.01  # relative difference of pixel sizes that does not count
DAMAGED = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


def embedded_anatomy() -> dict[str, Volume]:
    """Return the embedded heads by name; `embedded/NOTICE` says where they come from.

    "sagittal", "coronal", "epi" and "average" are upright magnitudes `(slices, rows,
    cols)`.
    """
    content = EMBEDDED.read_bytes() if EMBEDDED.is_file() else b""
    text = f"{EMBEDDED} is damaged: check it out of the repository again"
    require(hashlib.sha256(content).hexdigest() == SHA256, text)
    with np.load(io.BytesIO(content)) as archive:
        return {name: archive[name].astype(np.float32) for name in archive}


def nifti_volumes(
    path: Path, number: int | None = None
) -> Iterator[tuple[str, Volume]]:
    """Read magnitudes from one NIfTI file, or from every one in a folder.

    Args:
        path: A `.nii` or `.nii.gz` file, or a folder of them.
        number: Which volume of a series is taken; by default the first, with a warning.

    Yields:
        The name of a file without its ending, and its volume: slices along the third
        axis of the file, each with square pixels and upright as the header has it: the
        top of the head, or the nose, upwards; the patient's left, or the back of the
        head, to the right.

    Raises:
        InputError: If there is no such file, or it holds no usable magnitudes.
    """
    files = named_files(path, (".nii", ".nii.gz"), lambda f: splitext_addext(f.name)[0])
    for name, file in files.items():
        yield name, _volume(file, number)


def _volume(path: Path, number: int | None) -> Volume:
    text = (
        f"{path} cannot be read as NIfTI ({{}}): copy it again, or convert it, DICOM "
    )
    damaged = (*DAMAGED, AttributeError)  # surfaces have no voxels
    with reworded(f"{text}with dcm2niix", *damaged):
        image: Any = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim == 4 and voxels.size:
        voxels = _of_series(path, voxels, number)
    else:
        text = f"volume is {number}, but {path} holds one volume: leave it out"
        require(not number, text)
    text = f"{path} holds {voxels.dtype} of shape {voxels.shape}, but must hold a "
    usable = voxels.ndim == 3 and voxels.size and voxels.dtype.kind in "uif"
    require(usable, f"{text}volume of real magnitudes: convert it")
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        voxels = voxels.astype(np.float32)
    text = f"{path} holds values that are not magnitudes (negative, not finite, or "
    positive = np.isfinite(voxels).all() and voxels.min() >= 0 and voxels.max() > 0
    text += "zero everywhere) in single precision: take the magnitude image of the scan"
    require(positive, text)
    affine = np.asarray(image.affine)
    placed = np.isfinite(affine).all() and np.linalg.det(affine)
    text = f"{path} does not say where its voxels are (its affine is singular): set it"
    require(placed, text)
    _check_header(path, image.header, affine)
    return upright(voxels, affine)


def _check_header(path: Path, header: Any, affine: NDArray[Any]) -> None:
    """Compare what a header says twice: where axes lead, and the shape of pixels."""
    known = hasattr(header, "get_qform")
    if known and header["qform_code"] and header["sform_code"]:
        forms = (header.get_qform(), header.get_sform())
        axes = ["".join(orientations.aff2axcodes(np.nan_to_num(f))) for f in forms]
        text = f"{path} has axes {axes[0]} by its qform, but {axes[1]} by its sform: "
        require(axes[0] == axes[1], f"{text}correct one of them, or set its code to 0")
    sizes, said = affines.voxel_sizes(affine), header.get_zooms()  # of any unit
    same = np.isclose(sizes[0] * said[1], sizes[1] * said[0], SQUARE, 0)
    text = f"{path} has pixels of {sizes[0]:g} x {sizes[1]:g} mm by its affine, but of "
    require(same, f"{text}{said[0]:g} x {said[1]:g} by pixdim: correct one of them")


def _of_series(path: Path, voxels: NDArray[Any], number: int | None) -> NDArray[Any]:
    count = voxels.shape[-1]
    if number is None:
        text = "%s holds %d volumes: volume 0 is taken, --volume N takes another"
        LOG.warning(text, path, count)
    text = f"volume is {number}, but {path} holds {count} volumes: choose 0 to "
    require(0 <= (number or 0) < count, f"{text}{count - 1}")
    series: NDArray[Any] = voxels[..., number or 0]
    return series


def upright(voxels: NDArray[Any], affine: NDArray[Any]) -> Volume:
    """Turn voxels so that slices along their third axis stand upright.

    The affine `(4, 4)` says where they are: to the right, anterior, superior. Pixels of
    the slices, `(slices, rows, cols)`, are square, as small as the smaller side was.

    Examples:
        >>> upright(np.zeros((5, 4, 3)), np.diag([1.0, 2.0, 1.0, 1.0])).shape
        (3, 8, 5)
    """
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(UPRIGHT)
    )
    turned = orientations.apply_orientation(voxels, turn)
    axis = int(turn[2, 0])
    slices = np.moveaxis(turned, axis, 0).astype(np.float32)
    sizes = affines.voxel_sizes(affine)[np.argsort(turn[:, 0])]  # down, back, left
    plane = np.delete(sizes, axis)
    if np.ptp(plane) > SQUARE * plane.min():
        zoom = (1, *(plane / plane.min()))
        slices = ndimage.zoom(slices, zoom, order=1, mode="nearest", grid_mode=True)
    return np.ascontiguousarray(slices, dtype=np.float32)
