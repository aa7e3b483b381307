"""How a volume was undersampled, for the attributes of its reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.random import RandomState
from torch import Tensor

from mri_example.data import KSpaceFile
from mri_example.sampling import Masks, Seed, volume_seed

BROUGHT = ("acceleration", "num_low_frequency")


def undersampling(
    file: KSpaceFile, masks: Masks, shape: Sequence[int]
) -> dict[str, Any]:
    """Return how a volume was undersampled.

    Args:
        file: A file; one that brings a mask tells the acceleration itself, or it is
            measured.
        masks: What draws the mask of other files, seeded by the name of the file.
        shape: Shape of the k-space that it is drawn for, `(coils, ..., rows, cols)`.

    Returns:
        `acceleration`, the nominal one that the mask was drawn with or else samples
        over measured samples, to one decimal; `num_low_frequency`, columns in the fully
        sampled center, where it is known; and `mask`, the pattern or the file.
    """
    if file.mask is not None:
        own = file.mask.size / float(file.mask.astype(bool).sum())
        brought = {name: file.attributes.get(name) for name in BROUGHT}
        told = {name: value for name, value in brought.items() if value is not None}
        return {"mask": "of the file", "acceleration": round(own, 1)} | told
    seed = volume_seed(file.path.name)
    mask, low = masks(shape, seed=seed)
    return {
        "mask": _pattern(masks),
        "acceleration": _nominal(masks, seed) or _measured(mask),
        "num_low_frequency": low,
    }


def _nominal(masks: Masks, seed: Seed) -> float | None:
    """Return the acceleration of the pair that the first draw of a mask picks."""
    accelerations: Sequence[float] | None = getattr(masks, "accelerations", None)
    if accelerations is None:
        return None
    return float(accelerations[RandomState(seed).randint(len(accelerations))])


def _measured(mask: Tensor) -> float:
    return round(mask.numel() / float(mask.sum()), 1)


def _pattern(masks: Masks) -> str:
    if hasattr(masks, "path"):
        return str(masks.path.name)
    return str(getattr(masks, "pattern", type(masks).__name__))
