"""A mask of one's own, from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_example.errors import InputError
from mri_example.sampling.interface import Seed
from mri_example.sampling.reading import read_array
from mri_example.sampling.volumes import slices_and_columns


@dataclass(frozen=True)
class MaskFile:
    """Use the same mask, read from a file, for all k-space.

    Args:
        path: The file: .npy; .npz or HDF5 (.h5, .hdf5) with a data set `mask`, or a
            single one; anything else is text, numbers between spaces or commas. It
            holds 1 where k-space is measured and 0 elsewhere, `(cols,)`, or for 3-D
            acquisitions `(slices, cols)`. Axes of length one do not count.

    Raises:
        InputError: If the file cannot be read or holds no such mask.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mask.txt"
        ...     _ = path.write_text("1 0 0 1 1 1 0 0")
        ...     mask_function = MaskFile(path)
        >>> mask_function((1, 320, 8))
        (tensor([[[1., 0., 0., 1., 1., 1., 0., 0.]]]), 3)
    """

    path: Path
    measured: NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = np.atleast_1d(read_array(self.path).squeeze())
        if values.ndim not in (1, 2) or not np.isin(values, (0, 1)).all():
            raise InputError(
                f"{self.path} holds {values.dtype} of shape {values.shape}, but a mask "
                f"is 0 or 1 along (cols,), or (slices, cols) for 3-D acquisitions"
            )
        if not values.any():
            raise InputError(
                f"{self.path} holds a mask that measures nothing: it must be 1 where "
                f"k-space is measured"
            )
        object.__setattr__(self, "measured", values.astype(bool))  # once, here

    @property
    def encodes_slices(self) -> bool:
        """Whether the mask is one of slices and columns."""
        return self.measured.ndim == 2

    def __call__(
        self, shape: Sequence[int], offset: int | None = None, seed: Seed = None
    ) -> tuple[Tensor, int]:
        """Return the mask.

        Args:
            shape: Shape of the k-space, `(..., rows, cols)`; for a mask of slices and
                columns `(..., coils, slices, rows, cols)`.
            offset: Of no use here.
            seed: Of no use here.

        Returns:
            The mask, float32 `(1, ..., 1, cols)` or `(1, ..., slices, 1, cols)`, and
            the number of columns without a gap in the center, 0 if the middle one is
            not measured.

        Raises:
            InputError: If the k-space has another number of columns or slices.
        """
        del offset, seed
        sizes = shape[-1:] if self.measured.ndim == 1 else slices_and_columns(shape)
        if tuple(sizes) != self.measured.shape:
            raise InputError(
                f"{self.path} holds a mask of {_named(self.measured.shape)}, but the "
                f"k-space of shape {tuple(shape)} has {_named(sizes)}: give a mask of "
                f"that size, or leave out such files; slabs that a model is trained "
                f"on need a mask of as many slices"
            )
        mask = torch.from_numpy(self.measured).float().unsqueeze(-2)
        ones = (1,) * (len(shape) - mask.ndim)
        return mask.view(*ones, *mask.shape), _central(self.measured)


def _named(sizes: Sequence[int]) -> str:
    names = ("columns",) if len(sizes) == 1 else ("slices", "columns")
    return " and ".join(f"{n} {name}" for n, name in zip(sizes, names, strict=True))


def _central(measured: NDArray[np.bool_]) -> int:
    """Count the columns around the middle one up to the first gap on each side."""
    columns = measured if measured.ndim == 1 else measured[len(measured) // 2]
    middle = len(columns) // 2
    gaps = np.flatnonzero(~columns)
    if middle in gaps:
        return 0
    above, below = gaps[gaps > middle], gaps[gaps < middle]
    return int(min(above, default=len(columns)) - max(below, default=-1) - 1)
