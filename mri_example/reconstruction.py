"""From undersampled files to files of reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mri_example.data import KSpaceFile, SliceDataset, blend, write_reconstruction
from mri_example.errors import InputError
from mri_example.sampling import MaskFunction
from mri_example.signal import center_crop, root_sum_of_squares

Method: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def zero_filled(image: Tensor, mask: Tensor) -> Tensor:
    """Return the zero-filled image itself, the method to be better than."""
    del mask
    return image


def reconstruct(
    method: Method,
    data: Path,
    output: Path,
    mask_function: MaskFunction,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    progress: bool = True,
) -> list[Path]:
    """Reconstruct every file of a folder.

    Files that bring a mask keep it; the others are undersampled by `mask_function`,
    seeded by the name of the file.

    Args:
        method: A `Reconstructor`, or a function like one, of zero-filled images of
            coils and masks. If it has a `slab`, it is given slabs of so many slices
            that overlap by half, and the magnitudes are blended.
        data: Folder of files in the fastMRI layout, of one coil or several.
        output: Folder for the reconstructions, one file for each input, of the same
            name: data set `reconstruction`, float32 magnitudes `(slices, H, W)`.
        mask_function: Draws the masks.
        device: Where to compute, for example `cuda`.
        batch_size: Slices that are reconstructed at once; at least one slab.
        progress: Show a progress bar.

    Returns:
        The files written.

    Raises:
        InputError: If `data` cannot be used, or `output` is the same folder.
    """
    if output.resolve() == data.resolve():
        raise InputError(f"output is the data folder {data}: choose another folder")
    slab, coils = getattr(method, "slab", None), getattr(method, "coils", None)
    dataset = SliceDataset(data, mask_function, slab=slab, coils=coils)
    batch = max(1, batch_size // (dataset.slab or 1))
    written, first = [], 0
    for file in tqdm(
        dataset.files, desc="reconstruct", unit="volume", disable=not progress
    ):
        items = range(first, first + len(dataset.starts(file)))
        volume = _volume(method, dataset, file, items, device, batch)
        path = output / file.path.name
        write_reconstruction(path, volume)
        written.append(path)
        first = items.stop
    return written


@torch.no_grad()
def _volume(
    method: Method,
    dataset: SliceDataset,
    file: KSpaceFile,
    items: range,
    device: str,
    batch_size: int,
) -> NDArray[np.float32]:
    slabs: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(items), batch_size):
        samples = [dataset[i] for i in items[start : start + batch_size]]
        images = torch.stack([sample.zero_filled for sample in samples]).to(device)
        masks = torch.stack([sample.mask for sample in samples]).to(device)
        magnitudes = root_sum_of_squares(_applied(method, images, masks, file), dim=1)
        cropped = center_crop(magnitudes, file.crop).float().cpu().numpy()
        for sample, image in zip(samples, cropped, strict=True):
            slabs[sample.slice_index] = image.reshape(-1, *file.crop)
    return blend(slabs, file.slices)


def _applied(method: Method, images: Tensor, masks: Tensor, file: KSpaceFile) -> Tensor:
    try:
        return method(images, masks)
    except ValueError as error:
        raise InputError(f"{file.path} cannot be reconstructed: {error}") from error
