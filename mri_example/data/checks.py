"""Whether the parts of a file agree with each other, and with its folder."""

from __future__ import annotations

import numpy as np

from mri_example.data.files import KSpaceFile
from mri_example.errors import InputError

CLOSE = 1e-3  # relative, of the attributes to the target


def check_place(file: KSpaceFile, folder: str) -> None:
    """Make sure that a file is in the right folder.

    Args:
        file: The file.
        folder: For example `multicoil_train`.

    Raises:
        InputError: If it has the axis of coils in a single-coil folder, or lacks it in
            the other; or it brings a mask, but is there to be trained on; or it has
            no target, but is there to be validated on.
    """
    challenge, split = folder.split("_")
    if (challenge == "multicoil") != (len(file.shape) == 4):
        raise InputError(
            f"{file.path}: k-space has shape {file.shape}, which does not belong into "
            f"{folder}: move it"
        )
    if file.mask is not None and split in ("train", "val"):
        raise InputError(
            f"{file.path} brings a mask, so its k-space is undersampled and no model "
            f"can learn from it: move it from {folder}"
        )
    if file.target is None and split == "val":
        raise InputError(
            f"{file.path} has no target volume, so nothing can be validated on it: "
            f"move it from {folder}, or add its target"
        )


def check_header(file: KSpaceFile) -> None:
    """Make sure that the header of a file describes its k-space.

    Which columns count as measured follows from the encoded columns, unless the file
    brings a mask.

    Raises:
        InputError: If it encodes another number of columns, or the trajectory is not
            Cartesian.
    """
    if file.trajectory.lower() not in ("", "cartesian"):
        raise InputError(
            f"{file.path}: the header says that the trajectory is {file.trajectory}, "
            f"but k-space is read as Cartesian: grid the data first, or correct the "
            f"data set 'ismrmrd_header'"
        )
    columns = file.shape[-1]
    if file.mask is None and file.encoded not in (None, columns):
        raise InputError(
            f"{file.path}: the header speaks of {file.encoded} encoded columns, but "
            f"k-space has {columns}, so the wrong ones may count as measured: repair "
            f"the header, or remove the data set 'ismrmrd_header'"
        )


def check_values(file: KSpaceFile) -> None:
    """Read all numbers of a file and make sure that they can be used.

    Raises:
        InputError: If k-space or target cannot be read or are not finite, k-space is
            not zero where the mask says that nothing was measured, or the attributes
            `max` and `norm` are no numbers or not those of the target.
    """
    for index in range(file.slices):
        _check_kspace(file, index)
    if file.target is not None:
        _check_target(file)


def _check_kspace(file: KSpaceFile, index: int) -> None:
    kspace = file.kspace(index)
    if file.mask is not None and kspace[..., file.mask == 0].any():
        raise InputError(
            f"{file.path}: k-space of slice {index} is not zero where the mask is: one "
            f"of them belongs to another file"
        )


def _check_target(file: KSpaceFile) -> None:
    target = file.target_volume()
    for name, value in {"max": target.max(), "norm": np.linalg.norm(target)}.items():
        said = file.number(name)
        stated = value if said is None else said
        if not np.isclose(stated, value, rtol=CLOSE, atol=0):
            raise InputError(
                f"{file.path}: the attribute {name!r} is {stated:.6g}, but that of "
                f"{file.target} is {value:.6g}: repair the attribute"
            )
