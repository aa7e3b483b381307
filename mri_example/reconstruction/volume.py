"""One volume, slice by slice or slab by slab."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_example.data import KSpaceFile, Sample, SliceDataset, blend
from mri_example.errors import InputError
from mri_example.reconstruction.tiling import Magnitudes
from mri_example.signal import center_crop


@torch.no_grad()
def reconstruct_volume(
    magnitudes: Magnitudes,
    dataset: SliceDataset,
    file: KSpaceFile,
    *,
    device: str = "cpu",
    batch_size: int = 1,
) -> NDArray[np.float32]:
    """Reconstruct a volume; where slabs overlap, they are blended.

    Args:
        magnitudes: A function of what `Sample.inputs` holds.
        dataset: The slices or slabs of the file and perhaps of others.
        file: The file.
        device: Where to compute.
        batch_size: Slices or slabs that are reconstructed at once.

    Returns:
        Magnitudes, `(slices, H, W)`.

    Raises:
        InputError: If the file cannot be read or reconstructed, or needs more memory
            than there is.
    """
    slabs: dict[int, NDArray[np.float32]] = {}
    items = [i for i, (owner, _) in enumerate(dataset.items) if owner is file]
    for start in range(0, len(items), batch_size):
        samples = [dataset[i] for i in items[start : start + batch_size]]
        images = _applied(magnitudes, samples, file, device)
        cropped = center_crop(images, file.crop).float().cpu().numpy()
        for sample, image in zip(samples, cropped, strict=True):
            slabs[sample.slice_index] = image.reshape(-1, *file.crop)
    return blend(slabs, file.slices)


def _applied(
    magnitudes: Magnitudes, samples: Sequence[Sample], file: KSpaceFile, device: str
) -> Tensor:
    try:
        inputs = zip(*(sample.inputs for sample in samples), strict=True)
        return magnitudes(*(torch.stack(parts).to(device) for parts in inputs))
    except ValueError as error:
        raise InputError(f"{file.path} cannot be reconstructed: {error}") from error
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{file.path} does not fit into the memory of {device}, {len(samples)} of "
            f"shape {tuple(samples[0].zero_filled.shape)} at once: lower batch_size, "
            f"or cut it with tile"
        ) from error
