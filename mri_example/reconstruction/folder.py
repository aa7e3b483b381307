"""Whole folders: from undersampled files to files of reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from torch import nn
from tqdm import tqdm

from mri_example.data import (
    KSpaceFile,
    SliceDataset,
    volume_paths,
    write_reconstruction,
)
from mri_example.data.slices import check_coils
from mri_example.errors import InputError
from mri_example.reconstruction.device import check_device
from mri_example.reconstruction.method import Method, zero_filled
from mri_example.reconstruction.tile import WHOLE, Tile
from mri_example.reconstruction.tiling import in_tiles
from mri_example.reconstruction.undersampling import undersampling
from mri_example.reconstruction.volume import reconstruct_volume
from mri_example.sampling import Masks

OnFailure: TypeAlias = Callable[[Path, InputError], None]
S = TypeVar("S")
T = TypeVar("T")


def reconstruct(
    method: Method,
    data: Path,
    output: Path,
    mask_function: Masks,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    tile: Tile = WHOLE,
    progress: bool = True,
    on_failure: OnFailure | None = None,
) -> list[Path]:
    """Reconstruct every file of a folder.

    Files that bring a mask keep it; the others are undersampled by `mask_function`,
    seeded by the name of the file.

    Args:
        method: A `Reconstructor`, or a function like one, of zero-filled images of
            coils and masks. If it has a `slab`, it is given slabs of so many slices
            that overlap by half, and the magnitudes are blended, but whole volumes
            where masks tell slices apart; if it has `metadata`,
            kinds of scans that it knows, it is also told which of them a scan is. A
            module is moved to the device.
        data: Folder of files in the fastMRI layout, of one coil or several.
        output: Folder for the reconstructions, one file for each input, of the same
            name: data set `reconstruction`, float32 magnitudes `(slices, H, W)`, and
            the attributes `acceleration`, `num_low_frequency` and `mask`.
        mask_function: Draws the masks.
        device: Where to compute, for example `cuda`.
        batch_size: Slices that are reconstructed at once; at least one slab.
        tile: The most that the method is given at once, for what does not fit.
        progress: Show a progress bar.
        on_failure: Called with the path of a volume that fails and the error; the
            volume is skipped, and an earlier reconstruction of it is removed from
            `output`. Without it the first failure ends everything, and what can be
            seen without reconstructing is seen before anything is written.

    Returns:
        The files written.

    Raises:
        InputError: If `data` cannot be used, `output` is the same folder, the method
            cannot be given such tiles, or device or batch size are none.
    """
    _check(method, data, output, device, batch_size, tile)
    _check_slices(tile, mask_function)
    if isinstance(method, nn.Module):
        method.to(device)
    skip = _skipping(output, on_failure)
    dataset = _dataset(method, data, mask_function, tile, skip)
    magnitudes = in_tiles(method, tile)
    batch = max(1, batch_size // (dataset.slab or 1))

    def written(file: KSpaceFile) -> Path:
        path, sizes = output / file.path.name, (file.crop[0], file.shape[-1])
        volume = reconstruct_volume(
            magnitudes, dataset, file, device=device, batch_size=batch
        )
        how = undersampling(file, mask_function, (file.coils, file.slices, *sizes))
        write_reconstruction(path, volume, how)
        return path

    bar = tqdm(dataset.files, desc="reconstruct", unit="volume", disable=not progress)
    with bar as files:
        paths = [_attempt(written, file, file.path, skip) for file in files]
    return [path for path in paths if path is not None]


def _check(
    method: Method, data: Path, output: Path, device: str, batch_size: int, tile: Tile
) -> None:
    if output.resolve() == data.resolve():
        raise InputError(f"output is the data folder {data}: choose another folder")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, but must be at least 1")
    check_device(device)
    tile.check(method)


def _check_slices(tile: Tile, mask_function: Masks) -> None:
    if tile.slices is not None and mask_function.encodes_slices:
        raise InputError(
            f"tile.slices is {tile.slices}, but the masks tell slices apart, so all "
            f"slices of a volume are measured together: cut rows instead"
        )


def _skipping(output: Path, on_failure: OnFailure | None) -> OnFailure | None:
    """Let no reconstruction of an earlier run stand for a volume that fails."""
    if on_failure is None:
        return None

    def skip(path: Path, error: InputError) -> None:
        (output / path.name).unlink(missing_ok=True)
        on_failure(path, error)

    return skip


def _dataset(
    method: Method,
    data: Path,
    mask_function: Masks,
    tile: Tile,
    on_failure: OnFailure | None,
) -> SliceDataset:
    """Return the slices or slabs of the files that can be used."""
    coils, slab = getattr(method, "coils", None), getattr(method, "slab", None)
    known = getattr(method, "metadata", ())
    if method is zero_filled and mask_function.encodes_slices:
        slab = 1  # at least, for the data set to have volumes

    def usable(path: Path) -> Path:
        check_coils(KSpaceFile.inspect(path), coils)
        return path

    found = [_attempt(usable, path, path, on_failure) for path in volume_paths(data)]
    paths = [path for path in found if path is not None]
    return SliceDataset(
        paths, mask_function, slab=tile.slices or slab, coils=coils, metadata=known
    )


def _attempt(
    make: Callable[[S], T], source: S, path: Path, on_failure: OnFailure | None
) -> T | None:
    """Make something of a volume, or leave its failure to whoever wants to know."""
    try:
        return make(source)
    except InputError as error:
        if on_failure is None:
            raise
        on_failure(path, error)
        return None
