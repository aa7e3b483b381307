"""From ISMRMRD raw files to files in the fastMRI layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mri_example.data.files import crop_of, write_kspace
from mri_example.data.header import Header
from mri_example.data.raw_file import read_raw
from mri_example.errors import InputError
from mri_example.transforms import center_crop, ifft2c, root_sum_of_squares

SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")


def convert_raw(source: Path, folder: Path) -> list[Path]:
    """Convert one raw file, or every one in a folder.

    Noise scans and calibration lines that are no part of the image are left out,
    averages are averaged, and what was not encoded is zero. A file that is fully
    sampled has a target, the root-sum-of-squares of its coils; another has its mask.
    One coil makes a single-coil file. The header is copied whole, with all that it says
    of the patient.

    Args:
        source: A file, or a folder of them (.h5, .hdf5, .mrd, .ismrmrd).
        folder: Where the files go, for example `.../multicoil_test`.

    Returns:
        The files that were written now; those that exist are left as they are.

    Raises:
        InputError: If a file is not Cartesian or holds more than one stack of slices,
            two would have the same name, or `folder` is that of the source.
    """
    files = _sources(source)
    if folder.resolve() == files[0].parent.resolve():
        raise InputError(f"output is the folder of {source}: choose another folder")
    names: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(file.stem, file)
        if other != file:
            raise InputError(
                f"{other} and {file} would both become {file.stem}.h5: rename one"
            )
    missing = {folder / f"{n}.h5": f for n, f in names.items()}
    missing = {path: file for path, file in missing.items() if not path.exists()}
    for path, file in missing.items():
        _convert(file, path)
    return list(missing)


def _convert(source: Path, path: Path) -> None:
    header, kspace, mask = read_raw(source)
    attributes = {"acquisition": header.acquisition, "patient_id": header.patient}
    data = kspace[:, 0] if kspace.shape[1] == 1 else kspace
    if _encoded(mask, header.sizes).all():
        target = _target(kspace, header.sizes)
        write_kspace(path, data, target, header.xml, attributes)
    else:
        sampling = _sampling(mask, header.sizes)
        write_kspace(path, data, None, header.xml, attributes | sampling, mask)


def _sources(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(f for f in source.iterdir() if f.suffix in SUFFIXES)
    files = [f for f in files if not f.name.startswith(".")]
    if not files:
        raise InputError(
            f"the folder {source} holds no {', '.join(SUFFIXES)} files: check the path"
        )
    return files


def _target(kspace: NDArray[np.complex64], header: Header) -> NDArray[np.float32]:
    rows, cols = kspace.shape[-2:]
    crop = crop_of(None, header, (rows, cols))
    images = (root_sum_of_squares(ifft2c(torch.from_numpy(k)), dim=0) for k in kspace)
    return torch.stack([center_crop(image, crop) for image in images]).numpy()


def _encoded(mask: NDArray[np.float32], header: Header) -> NDArray[np.float32]:
    """Leave out the columns that the scan does not encode at all."""
    left, right = header.padding
    return mask[max(left, 0) : right]


def _sampling(mask: NDArray[np.float32], header: Header) -> dict[str, float]:
    """Return the acceleration, and the width of the measured block in the middle."""
    encoded, middle = _encoded(mask, header), len(mask) // 2
    below, above = mask[:middle][::-1], mask[middle:]
    block = sum(int(np.cumprod(side).sum()) for side in (below, above))
    return {
        "acceleration": round(len(encoded) / float(encoded.sum()), 1),
        "num_low_frequency": block if mask[middle] else 0,
    }
