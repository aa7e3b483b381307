"""Which acquisitions of a raw file are lines of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mri_example.errors import InputError

NO_IMAGE = (  # noise, and what serves the scanner itself
    ismrmrd.ACQ_IS_NOISE_MEASUREMENT,
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_PHASECORR_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
CALIBRATION_AND_IMAGE = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
UNUSABLE = {
    "lines read backwards, as in echo-planar imaging": (ismrmrd.ACQ_IS_REVERSE,),
    "compressed lines": (
        ismrmrd.ACQ_COMPRESSION1,
        ismrmrd.ACQ_COMPRESSION2,
        ismrmrd.ACQ_COMPRESSION3,
        ismrmrd.ACQ_COMPRESSION4,
    ),
}
ONE_OF = {
    "kspace_encode_step_2": "partitions of a 3-D encoding",
    "contrast": "contrasts",
    "phase": "phases of a cycle",
    "repetition": "repetitions",
    "set": "sets",
}
PLACE = ("slice", "kspace_encode_step_1", "average")


def image_indices(heads: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Find the lines of one stack of slices by their flags and counters.

    Left out are noise, navigators and the like, and calibration lines that are not
    flagged as lines of the image too.

    Args:
        heads: Those of all acquisitions.
        path: The file.

    Raises:
        InputError: If there are none, they are read backwards or compressed, belong to
            several contrasts and the like, or come twice.
    """
    calibration = _flagged(heads, CALIBRATION) & ~_flagged(heads, CALIBRATION_AND_IMAGE)
    (indices,) = np.nonzero(~(_flagged(heads, *NO_IMAGE) | calibration))
    if not indices.size:
        raise InputError(f"{path} has no lines of an image: take the scan itself")
    _check_flags(heads[indices], path)
    _check_counters(heads[indices]["idx"], path)
    return indices


def _flagged(heads: NDArray[Any], *flags: int) -> NDArray[np.bool_]:
    bits = sum(1 << (flag - 1) for flag in flags)
    flagged: NDArray[np.bool_] = (heads["flags"] & np.uint64(bits)) != 0
    return flagged


def _check_flags(heads: NDArray[Any], path: Path) -> None:
    for meaning, flags in UNUSABLE.items():
        if _flagged(heads, *flags).any():
            raise InputError(
                f"{path} has {meaning}, which cannot be converted: let the scanner's "
                f"converter correct them"
            )


def _check_counters(counters: NDArray[Any], path: Path) -> None:
    for counter, meaning in ONE_OF.items():
        values = np.unique(counters[counter])
        if len(values) > 1:
            raise InputError(
                f"{path} has {len(values)} {meaning}, but a file of the fastMRI layout "
                f"holds one stack of slices: write each into a file of its own"
            )
    places = np.stack([counters[name] for name in PLACE], axis=1)
    found, times = np.unique(places, axis=0, return_counts=True)
    if times.max() > 1:
        z, step, average = found[times.argmax()]
        raise InputError(
            f"{path} has {times.max()} lines of slice {z}, phase encoding {step} and "
            f"average {average}: write each measurement into a file of its own"
        )
