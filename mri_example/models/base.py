"""What every reconstruction model is."""

import inspect
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mri_example.errors import require
from mri_example.transforms import center_crop


class Reconstructor(nn.Module):
    """Reconstruct images from undersampled k-space.

    The arguments of a model are its configuration: options of the command line, and
    what a checkpoint keeps.

    Shape:
        - Zero-filled images of the coils: complex `(batch, coils, *space)`.
        - Mask: `(batch, 1, *ones, cols)`, broadcast over coils, slices and rows.
        - Metadata, of models that know some kinds of scans: `(batch, kinds)`, 1 for the
          kind of a scan, all zero for an unknown one. Without them all are unknown.
        - Reconstruction: complex `(batch, copies, *space)`, one image for each coil or
          one for all. Its magnitude is the root-sum-of-squares over the copies.

    Attributes:
        dims: Number of axes in `space`: 2 for slices, 3 for slabs of slices.
        slab: Slices of the slabs that volumes are reconstructed from, or `None`.
        coils: Number of coils of the data; `None` for any.
        each_coil: Whether every coil is reconstructed by itself, at a common scale.
        sensitivity: How sensitivity maps are estimated; `None` for a model without.
        metadata: Names of the kinds of scans that the model knows.
        scale_crop: Central rows and columns whose standard deviation is the scale of
            the images; `None` for all of them.
        options: The arguments that it was built with, defaults included.
    """

    options: dict[str, Any]
    dims: int = 2
    slab: int | None = None
    coils: int | None = None
    each_coil: bool = False
    sensitivity: str | None = None
    metadata: Sequence[str] = ()
    scale_crop: int | None = None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments."""
        model = super().__new__(cls)
        init = inspect.signature(cls.__init__)
        bound = init.bind(model, *args, **options).arguments
        del bound["self"]
        more = bound.pop("options", {})
        object.__setattr__(model, "options", defaults(cls) | bound | more)
        return model

    def scale_of(self, images: Tensor) -> Tensor:
        """Return the standard deviation of every image, or 1 where it is constant.

        From complex `(batch, *any)` to `(batch, *ones)`. Whoever hands a part of an
        image to a model that divides by the scale hands in the scale of the whole.
        """
        counted = images
        if self.scale_crop is not None:
            rows, cols = (min(self.scale_crop, size) for size in images.shape[-2:])
            counted = center_crop(images, (rows, cols))
        deviation = torch.view_as_real(counted).flatten(1).std(dim=1)
        deviation = torch.where(deviation > 0, deviation, 1)
        return deviation.view(-1, *(1,) * (images.ndim - 1))

    def trajectory(self, *inputs: Tensor, scale: Tensor | None = None) -> list[Tensor]:
        """Return the estimates that the training loss is averaged over.

        The last of them is the reconstruction; most models have no other.
        """
        options = {} if scale is None else {"scale": scale}
        return [self(*inputs, **options)]


def defaults(model: type[Reconstructor]) -> dict[str, Any]:
    """Return the arguments of a model and of the classes that it extends."""
    found: dict[str, Any] = {}
    for cls in reversed(model.__mro__[: model.__mro__.index(Reconstructor)]):
        init: Any = cls.__init__  # type: ignore[misc]
        parameters = inspect.signature(init).parameters.values()
        found |= {p.name: p.default for p in parameters if p.default is not p.empty}
    return found


def check_counts(**counts: int | Sequence[int] | None) -> None:
    """Refuse numbers below 1 and sequences that are empty; `None` is no number."""
    for name, value in counts.items():
        numbers = value if isinstance(value, Sequence) else (value,)
        fits = numbers and all(n is None or n >= 1 for n in numbers)
        require(fits, f"{name} is {value}, but must be at least 1")
