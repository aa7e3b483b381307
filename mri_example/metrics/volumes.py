"""What two volumes must be before they are compared."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mri_example.errors import InputError
from mri_example.transforms import center_crop

Volume: TypeAlias = Tensor | ArrayLike
Magnitudes: TypeAlias = NDArray[np.float64]


def comparable(target: Volume, reconstruction: Volume) -> tuple[Magnitudes, Magnitudes]:
    """Check two volumes and cut the square of the target's width out of both.

    Args:
        target: Magnitudes, `(slices, H, W)`.
        reconstruction: Magnitudes of as many slices.

    Returns:
        Both in float64, `(slices, W, W)`.

    Raises:
        InputError: If a volume is empty, not real or not finite, their numbers of
            slices differ, or one is too small for the square.
    """
    named = {"target": _array(target), "reconstruction": _array(reconstruction)}
    for name, volume in named.items():
        _check_values(name, volume)
    slices = [len(volume) for volume in named.values()]
    if slices[0] != slices[1]:
        raise InputError(
            f"the target has {slices[0]} slices and the reconstruction {slices[1]}: "
            f"compare volumes of as many slices"
        )
    width = named["target"].shape[-1]
    t, p = (_square(name, volume, width) for name, volume in named.items())
    return t, p


def _array(volume: Volume) -> NDArray[Any]:
    if isinstance(volume, Tensor):
        volume = volume.detach().cpu()
    return np.asarray(volume)


def _check_values(name: str, volume: NDArray[Any]) -> None:
    if volume.ndim != 3 or not volume.size:
        raise InputError(
            f"the {name} has shape {volume.shape}, but must be (slices, rows, cols), "
            f"none of them 0"
        )
    if np.iscomplexobj(volume):
        raise InputError(f"the {name} is complex: compare magnitudes")
    infinite = np.flatnonzero(~np.isfinite(volume).all(axis=(1, 2)))
    if infinite.size:
        raise InputError(
            f"the {name} is not finite in {infinite.size} of {len(volume)} slices, the "
            f"first being slice {infinite[0]}: mend or leave out this volume"
        )


def _square(name: str, volume: NDArray[Any], width: int) -> Magnitudes:
    rows, cols = volume.shape[1:]
    if min(rows, cols) < width:
        raise InputError(
            f"slices of the {name} are {rows} by {cols}, but must hold a square of the "
            f"target's width, {width}: pad them or crop the columns of the target"
        )
    whole = torch.from_numpy(volume.astype(np.float64))
    square: Magnitudes = center_crop(whole, (width, width)).numpy()
    return square
