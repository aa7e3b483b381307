"""From undersampled files to files of reconstructions."""

import contextlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor, nn

from mri_example.data.dataset import Sample, SliceDataset, blend
from mri_example.data.files import (
    KSpaceFile,
    opened,
    volume_paths,
    write_reconstruction,
)
from mri_example.errors import InputError, require, reworded
from mri_example.masks import Masks, volume_seed
from mri_example.models import Reconstructor
from mri_example.progress import shown
from mri_example.transforms import center_crop, root_sum_of_squares

Method: TypeAlias = Callable[..., Tensor]  # of `Sample.inputs`
OF_THE_FILE = ("acceleration", "num_low_frequency")
MADE = "made_with"  # the attribute with a hash of data, weights and options


def zero_filled(image: Tensor, mask: Tensor) -> Tensor:
    """Return the zero-filled image itself, the method to be better than."""
    del mask
    return image


def reconstruct(
    method: Method,
    data: Path,
    output: Path,
    masks: Masks,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    slab: int | None = None,
    failures: dict[Path, str] | None = None,
) -> list[Path]:
    """Reconstruct every file of a folder, and return the reconstructions.

    Files that bring a mask keep it; the others are undersampled, seeded by the name of
    the file. Data set and attributes of the output are in docs/mri.md. What was made
    before of the same file, with the same weights and options, is kept: a run that was
    interrupted goes on.

    Args:
        method: A `Reconstructor`, or a function like one, of zero-filled images of
            coils and masks. Its attributes `slab`, `coils` and `metadata` count if it
            has them. Slabs overlap by half, and their magnitudes are blended.
        data: Folder of files in the fastMRI layout, of one coil or several.
        output: Folder for the reconstructions, one file for each input, of its name.
        masks: How files without a mask are undersampled.
        device: Where to compute, for example `cuda`.
        batch_size: Slices that are reconstructed at once; at least one slab.
        slab: Slices of a slab, at most as many as the method takes.
        failures: Takes up the volumes that fail, and why; an earlier reconstruction of
            one is removed. Without it the first failure ends everything.
    """
    _check_free(data, output)
    _prepare(method, masks, device, batch_size, slab)
    whole = method is zero_filled and masks.encodes_slices  # slabs of at least 1 slice
    dataset = SliceDataset(
        data,
        masks,
        slab=slab or (1 if whole else getattr(method, "slab", None)),
        coils=getattr(method, "coils", None),
        metadata=getattr(method, "metadata", ()),
        failures=failures,
    )
    batch = max(1, batch_size // (dataset.slab or 1))
    paths, way = [], _digest_of(method, masks, dataset.slab)
    for file in shown(dataset.files, "reconstruct", "volume"):
        path = output / file.path.name
        try:
            made = _made_with(way, file)
            if not made or not _is_made(path, made[MADE]):
                volume = _volume(method, dataset, file, device, batch)
                attributes = _undersampling(file, masks) | made
                write_reconstruction(path, volume, attributes)
            paths.append(path)
        except InputError as error:
            if failures is None:
                raise
            failures[file.path] = str(error)
    for path in failures or ():  # nothing of an earlier run stands for it
        (output / path.name).unlink(missing_ok=True)
    return paths


def _check_free(data: Path, output: Path) -> None:
    """Keep measured data that lie where reconstructions would be written."""
    own = output.resolve() == data.resolve()
    require(not own, f"output is the data folder {data}: choose another folder")
    for path in (output / path.name for path in volume_paths(data)):
        free = True
        with contextlib.suppress(InputError), opened(path) as file:  # else no HDF5
            free = "reconstruction" in file or not [*file]
        text = f"{path} is there and no reconstruction: choose another folder"
        require(free, text)


def _digest_of(method: Any, masks: Masks, slab: int | None) -> str | None:
    """Return a hash of what all reconstructions follow from; `None` if not known."""
    if method is not zero_filled and not isinstance(method, Reconstructor):
        return None
    options: dict[str, Any] = getattr(method, "options", {})
    found = sha256(repr((type(method), options, slab, masks)).encode())
    if masks.file is not None:
        found.update(Path(masks.file).read_bytes())
    if isinstance(method, Reconstructor):
        for name, tensor in method.state_dict().items():
            found.update(name.encode())
            content = tensor.cpu().contiguous().view(-1).view(torch.uint8)
            found.update(content.numpy().tobytes())
    return found.hexdigest()


def _made_with(way: str | None, file: KSpaceFile) -> dict[str, str]:
    """Return the attribute by which a reconstruction of a file is known again."""
    if way is None:
        return {}
    changed = file.path.stat().st_mtime_ns
    content = repr((way, file.path.name, changed, file.digest))
    return {MADE: sha256(content.encode()).hexdigest()}


def _is_made(path: Path, digest: str) -> bool:
    """Return whether a reconstruction exists that was made in the same way."""
    made = False
    with contextlib.suppress(InputError), opened(path) as file:  # else written anew
        made = bool(file.attrs.get(MADE) == digest)
    return made


def _prepare(
    method: Any, masks: Masks, device: str, batch_size: int, slab: int | None
) -> None:
    """Check the options, and move a module to the device."""
    require(batch_size >= 1, f"batch_size is {batch_size}, but must be at least 1")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        text = f"device is {device!r}, which cannot be used here "
        text += f"({str(error).splitlines()[0]}): name another, such as cpu or cuda:0"
        raise InputError(text) from error
    if slab is not None:
        _check_slab(f"slab is {slab}, but", slab, method, masks)
    if isinstance(method, nn.Module):
        method.to(device)


def _check_slab(said: str, slab: int, method: Any, masks: Masks) -> None:
    most: int | None = getattr(method, "slab", None)
    name = getattr(method, "__name__", type(method).__name__)
    require(slab >= 1, f"{said} must be at least 1: leave it out")
    text = f"{said} {name} is given slice after slice: lower batch_size instead"
    require(most is not None, text)
    text = f"{said} the masks tell slices apart, so a volume is whole: leave it out"
    require(not masks.encodes_slices, text)
    text = f"{said} {name} takes slabs of {most} slices: choose at most that"
    require(slab <= (most or 0), text)


@torch.no_grad()
def _volume(
    method: Method, dataset: SliceDataset, file: KSpaceFile, device: str, batch: int
) -> NDArray[np.float32]:
    """Reconstruct a volume; where slabs overlap, they are blended."""
    slabs: dict[int, NDArray[np.float32]] = {}
    items = [i for i, (owner, _) in enumerate(dataset.items) if owner is file]
    for start in shown(range(0, len(items), batch), file.path.name, "batch"):
        samples = [dataset[i] for i in items[start : start + batch]]
        images = _magnitudes(method, samples, file, device)
        cropped = center_crop(images, file.crop).float().cpu().numpy()
        for sample, image in zip(samples, cropped, strict=True):
            slabs[sample.slice_index] = image.reshape(-1, *file.crop)
    volume = blend(slabs, file.slices)
    text = f"{file.path} is reconstructed to values that are not finite: try another"
    require(np.isfinite(volume).all(), f"{text} checkpoint, or device")
    return volume


def _magnitudes(
    method: Method, samples: Sequence[Sample], file: KSpaceFile, device: str
) -> Tensor:
    large = f"{file.path} does not fit into the memory of {device}, {len(samples)} of "
    large += f"shape {tuple(samples[0].zero_filled.shape)} at once: lower batch_size, "
    large += "or slab for a model of slabs"
    wrong = f"{file.path} cannot be reconstructed: {{}}"
    with reworded(large, torch.OutOfMemoryError), reworded(wrong, ValueError):
        inputs = zip(*(sample.inputs for sample in samples), strict=True)
        images = method(*(torch.stack(parts).to(device) for parts in inputs))
        return root_sum_of_squares(images, dim=1)


def _undersampling(file: KSpaceFile, masks: Masks) -> dict[str, Any]:
    """Return the attributes that say how a volume was undersampled.

    `acceleration`, the one that the mask was drawn with, or else samples over measured
    samples to one decimal; `num_low_frequency`, columns in the fully sampled center,
    where it is known; `mask`, the pattern or the file; and `columns`, which of them
    were measured.
    """
    if file.mask is not None:
        own = round(float(1 / file.mask.mean(dtype=np.float64)), 1)
        said = {name: file.attributes.get(name) for name in OF_THE_FILE}
        stated = {name: value for name, value in said.items() if value is not None}
        return {"mask": "of the file", "acceleration": own} | stated
    seed = volume_seed(file.path.name)
    mask, low = masks((file.coils, file.slices, file.crop[0], file.shape[-1]), seed)
    known = {"mask": masks.pattern, "num_low_frequency": low}
    if mask.numel() == mask.shape[-1]:
        known["columns"] = mask.flatten().numpy().astype(bool)
    if masks.file is None:
        return known | {"acceleration": float(masks.pair(RandomState(seed))[1])}
    acceleration = round(mask.numel() / float(mask.sum()), 1)
    return known | {"mask": Path(masks.file).name, "acceleration": acceleration}
