"""Magnitude volumes from DICOM series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mri_example.data.dicom_frames import Frame, read_frames
from mri_example.data.upright import Volume, check_magnitudes, upright
from mri_example.errors import InputError

SAME_PLACE = 1e-3  # millimeters
GAP = 1.5  # of the smallest distance of slices: one is missing
TO_NIFTI = np.diag([-1.0, -1.0, 1.0])  # DICOM counts leftwards and backwards


def dicom_volumes(path: Path) -> Iterator[tuple[str, Volume]]:
    """Read magnitudes from a DICOM series, or from every one in a folder of folders.

    Args:
        path: A file of many frames or of one slice; a folder with the files of one
            series; or a folder of such folders.

    Yields:
        The name of the file or of the folder of the series, and its volume: slices
        sorted along their normal and upright, as `nifti_volumes` has them.

    Raises:
        InputError: If there is no such file, one is not part of the series or no
            magnitude image, images share a place, or a slice is missing.
    """
    for name, files in _series(path).items():
        yield name, _volume([frame for file in files for frame in read_frames(file)])


def _series(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {path.stem: [path]}
    if path.is_dir():
        if files := _files(path):
            return {path.resolve().name: files}
        inner = {f.name: _files(f) for f in sorted(path.iterdir()) if f.is_dir()}
        if inner and all(inner.values()):
            return inner
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    raise InputError(
        f"{path} is neither a DICOM file nor a folder of a series, nor a folder of "
        f"such folders: check the path"
    )


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.name.upper() != "DICOMDIR"
    )


def _volume(frames: Sequence[Frame]) -> Volume:
    first = frames[0]
    for frame in frames:
        _check_alike(frame, first)
    normal = np.cross(first.right, first.down)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    _check_places(frames, np.array([f.position @ normal for f in frames]))
    voxels = np.stack([frame.pixels for frame in frames], axis=-1)
    check_magnitudes(voxels, first.path)
    affine = np.eye(4)
    affine[:3, :3] = TO_NIFTI @ np.stack([first.down, first.right, normal], axis=1)
    return upright(voxels, affine)


def _check_alike(frame: Frame, first: Frame) -> None:
    kinds = {
        "series": (frame.series, first.series),
        "size": (frame.pixels.shape, first.pixels.shape),
    }
    for kind, (one, other) in kinds.items():
        if one != other:
            raise InputError(
                f"{frame.path} is of {kind} {one}, but {first.path} of {other}: put "
                f"each series into a folder of its own"
            )
    turned = np.abs([frame.right - first.right, frame.down - first.down]).max()
    if turned > SAME_PLACE:
        raise InputError(
            f"{frame.path} lies in another direction than {first.path}: put each stack "
            f"of parallel slices into a folder of its own"
        )


def _check_places(frames: Sequence[Frame], heights: np.ndarray) -> None:
    gaps = np.diff(heights)
    if not gaps.size:
        return
    closest, widest = int(gaps.argmin()), int(gaps.argmax())
    if gaps[closest] < SAME_PLACE:
        raise InputError(
            f"{frames[closest + 1].path} and {frames[closest].path} hold images at the "
            f"same place: put each echo or time into a folder of its own"
        )
    if gaps[widest] > GAP * gaps[closest]:
        raise InputError(
            f"between {frames[widest].path} and {frames[widest + 1].path} lie "
            f"{gaps[widest]:.4g} mm, elsewhere {gaps[closest]:.4g}: a slice is "
            f"missing, copy the series again"
        )
