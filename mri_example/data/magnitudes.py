"""Magnitude images of any format, to simulate k-space from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mri_example.data.anatomy import nifti_volumes
from mri_example.data.dicom import dicom_volumes
from mri_example.data.upright import Volume
from mri_example.errors import InputError


def magnitude_volumes(source: Path) -> Iterator[tuple[str, Volume]]:
    """Read magnitudes from NIfTI where names say so, otherwise from DICOM.

    Args:
        source: What `nifti_volumes` or `dicom_volumes` takes.

    Returns:
        Names and volumes, read one after the other.

    Raises:
        InputError: If a folder holds files of both formats.
    """
    if not source.is_dir():
        nifti = source.name.endswith((".nii", ".nii.gz"))
    else:
        nifti = any(source.glob("*.nii*"))
        if nifti and any(source.glob("*.dcm")):
            raise InputError(
                f"{source} holds NIfTI and DICOM files: separate them, so that no "
                f"volume is taken twice or left out"
            )
    return nifti_volumes(source) if nifti else dicom_volumes(source)
