"""Magnitude volumes to simulate from: the embedded ones, or NIfTI files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from mri_example.errors import InputError

Volume = NDArray[np.float32]

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
    if hashlib.sha256(EMBEDDED.read_bytes()).hexdigest() != SHA256:
        raise InputError(f"{EMBEDDED} is damaged: check it out of the repository again")
    with np.load(EMBEDDED) as archive:
        return {name: archive[name].astype(np.float32) for name in archive}


def nifti_volumes(path: Path) -> dict[str, Volume]:
    """Read magnitudes from one NIfTI file, or from every one in a folder.

    Args:
        path: A `.nii` or `.nii.gz` file, or a folder of them. Of a series of volumes the
            first is taken.

    Returns:
        Volumes by file name, sliced along their third axis, first axis last.

    Raises:
        InputError: If there is no such file, or it holds no usable magnitudes.
    """
    paths = sorted(path.glob("*.nii*")) if path.is_dir() else [path]
    if not paths or not all(p.is_file() for p in paths):
        raise InputError(f"{path} is neither a NIfTI file nor a folder of them")
    return {p.name.split(".nii")[0]: _read(p) for p in paths}


def _read(path: Path) -> Volume:
    try:
        voxels = np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as NIfTI ({error})") from error
    if voxels.ndim == 4:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or voxels.dtype.kind not in "uif":
        raise InputError(
            f"{path} holds {voxels.dtype} of shape {voxels.shape}, but a volume of real "
            f"magnitudes is needed"
        )
    if not np.isfinite(voxels).all() or voxels.min() < 0 or voxels.max() <= 0:
        raise InputError(
            f"{path} holds values that are not magnitudes (negative, not finite, or "
            f"zero everywhere): take the magnitude image of the scan"
        )
    return np.ascontiguousarray(voxels[:, ::-1].transpose(2, 1, 0), dtype=np.float32)
