"""Build `anatomy.npz` from the packages that NOTICE names.

    python -m mri_example.data.embedded.build UNPACKED NIBABEL

UNPACKED is the folder into which the three Debian packages were unpacked
(`apt-get download NAME`, `dpkg -x FILE UNPACKED`), NIBABEL the installed package's
folder. Every source is checked against its SHA-256. The result does not depend on the
machine's clock, and is renamed into place when it is whole.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from mri_example.data.files import whole_file
from mri_example.errors import InputError

Volume = NDArray[np.uint8]
DEN_HEADER = 62
LONGEST_SIDE = 128


def sagittal(path: Path) -> Volume:
    """Read subject 1, sagittal and upright as it is."""
    voxels = np.frombuffer(path.read_bytes()[DEN_HEADER:], np.uint8)
    return voxels.reshape(84, 128, 128)


def coronal(path: Path) -> Volume:
    """Read subject 2 (axes left, superior, anterior) as coronal slices, top up."""
    return _voxels(path)[:, ::-1].transpose(2, 1, 0).astype(np.uint8)


def epi(path: Path) -> Volume:
    """Read the first time point of subject 3 as axial slices, nose up, in 8 bits."""
    voxels = _voxels(path)[..., 0].astype(np.float64)
    return _axial(np.round(255 * voxels / voxels.max()).astype(np.uint8))


def average(path: Path) -> Volume:
    """Read subject 4 as axial slices, nose up, with at most 128 voxels a side."""
    voxels = _voxels(path).astype(np.float64)
    shape = [round(n * LONGEST_SIDE / max(voxels.shape)) for n in voxels.shape]
    return _axial(np.round(resize(voxels, shape, anti_aliasing=True)).astype(np.uint8))


SOURCES: dict[str, tuple[Callable[[Path], Volume], str, str]] = {
    "sagittal": (
        sagittal,
        "usr/share/doc/libvolpack1-dev/examples/brainsmall.den",
        "eebfa050a1775f556718c2c9716cb624bc2270392e82176b1ce4812b36d4f286",
    ),
    "coronal": (
        coronal,
        "usr/share/doc/insighttoolkit5-examples/examples/Data/"
        "KmeansTest_T1UCharRaw.nii.gz",
        "e0e5975587f3f7916804bdd317c493cdb99cdb3703bf2671d458528f62510327",
    ),
    "epi": (
        epi,
        "tests/data/example4d.nii.gz",
        "42097dfbab9d2a036b41ae5c97a359591cf2cf5c3f8dc6ca6455c0b8a7f22696",
    ),
    "average": (
        average,
        "usr/share/mricron/templates/ch2.nii.gz",
        "a009051127f64dc3dd554d5f5b589870ea72106d9642c21b4e7093e478cfc309",
    ),
}


def build(unpacked: Path, nibabel_folder: Path, output: Path) -> str:
    """Write the embedded anatomy.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: If a source is not the one that NOTICE names.
    """
    with whole_file(output) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, (read, relative, digest) in SOURCES.items():
            path = (nibabel_folder if name == "epi" else unpacked) / relative
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise InputError(f"{path} is not the file that NOTICE names")
            member = io.BytesIO()
            np.save(member, np.ascontiguousarray(read(path)))
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_LZMA
            )
    return hashlib.sha256(output.read_bytes()).hexdigest()


def _voxels(path: Path) -> NDArray[Any]:
    return np.asanyarray(nibabel.load(path).dataobj)


def _axial(voxels: Any) -> Volume:
    """Turn axes (left-right, anterior, superior) into upright axial slices."""
    upright: Volume = voxels[:, ::-1].transpose(2, 1, 0)
    return upright


if __name__ == "__main__":
    here = Path(__file__).parent / "anatomy.npz"
    sys.stdout.write(build(Path(sys.argv[1]), Path(sys.argv[2]), here) + "\n")
