"""Masks of 3-D acquisitions: which axes they run along, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mri_example.errors import InputError


def slices_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """Return the sizes of the two phase-encoding axes of a 3-D acquisition.

    Args:
        shape: `(..., coils, slices, rows, cols)`. The axis of the coils must be there:
            without it three axes may just as well be the coils of a single slice.

    Raises:
        InputError: If there are fewer than four axes, or one of the two is empty.
    """
    if len(shape) < 4 or min(shape[-3], shape[-1]) < 1:
        raise InputError(
            f"shape is {tuple(shape)}, but a mask of slices and columns is for the "
            f"volumes of 3-D acquisitions, (coils, slices, rows, cols): use slabs of "
            f"slices, or a mask of columns alone"
        )
    return shape[-3], shape[-1]


def encoded_axes(mask: Tensor) -> int:
    """Return over how many axes the k-space of a mask is transformed.

    A mask that differs from slice to slice belongs to a 3-D acquisition, so the slices
    are transformed too. Otherwise rows and columns are enough: what the mask does not
    tell apart, the third transform and its inverse leave as it was.

    Args:
        mask: As a mask function returns it, with any axes before; of length one where
            it does not vary.

    Examples:
        >>> encoded_axes(torch.ones(1, 1, 1, 40))
        2
        >>> encoded_axes(torch.ones(1, 20, 1, 40))
        3
    """
    return 3 if mask.ndim >= 4 and mask.shape[-3] > 1 else 2
