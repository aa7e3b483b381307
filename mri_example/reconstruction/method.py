"""What reconstructs, and along which axes its images can be cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from mri_example.model import (
    IRIMReconstructor,
    RIMReconstructor,
    UNetReconstructor,
)

Method: TypeAlias = Callable[..., Tensor]  # of `Sample.inputs`


def zero_filled(image: Tensor, mask: Tensor) -> Tensor:
    """Return the zero-filled image itself, the method to be better than."""
    del mask
    return image


def tile_axes(method: Any) -> tuple[str, ...]:
    r"""Return the axes along which a method may be given a part of an image.

    A method that works on images alone, as the U-Net, may be given any part. One that
    compares its estimate with the measured data needs whole columns of k-space: with
    $F_r$ and $F_c$ the Fourier transforms along rows and columns, and $P$ a mask that
    is the same for all rows, the fully sampled readout,

    $$ (F_r F_c)^{-1} P F_r F_c\, \eta = F_c^{-1} P F_c\, \eta, $$

    so every row of an image has data of its own, and some rows are a smaller problem of
    the same kind. Columns are not: each of them is in all measured data.

    Args:
        method: A `Reconstructor` or a function like one. One that is not known here
            may say it in an attribute `tile_axes`.

    Examples:
        >>> from mri_example.model import RIM, UNet
        >>> tile_axes(UNet(2, 1).build()), tile_axes(RIM(2, 1).build())
        (('rows', 'cols'), ('rows',))
        >>> tile_axes(lambda image, mask: image)
        ()
    """
    if method is zero_filled or isinstance(method, UNetReconstructor):
        return ("rows", "cols")
    if isinstance(method, IRIMReconstructor | RIMReconstructor):
        return ("rows",)
    return tuple(getattr(method, "tile_axes", ()))


def scale_of_whole(method: Any, images: Tensor) -> dict[str, Tensor]:
    """Return what a method must be told of images to be given parts of them.

    The i-RIM and the RIM divide images by their standard deviation; a part has another.

    Returns:
        Arguments of the method; none of one that takes no scale.
    """
    if isinstance(method, IRIMReconstructor | RIMReconstructor):
        return {"scale": method.scale_of(images)}
    return {}


def method_name(method: Any) -> str:
    """Return what a method is called in messages."""
    return str(getattr(method, "__name__", type(method).__name__))
