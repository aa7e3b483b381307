"""Magnitude images from a method, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from mri_example.data import blend, slab_starts
from mri_example.reconstruction.method import Method, scale_of_whole
from mri_example.reconstruction.tile import Tile
from mri_example.signal import root_sum_of_squares

Magnitudes: TypeAlias = Callable[..., Tensor]
ROWS, COLS = -2, -1


def in_tiles(method: Method, tile: Tile) -> Magnitudes:
    """Return a function like `method` that returns magnitudes, blended from tiles.

    Weights are products of those that slabs are blended with, one along each axis. The
    mask, and metadata if there are any, are handed on whole, and so is the scale of the
    images to a method that divides by it.

    Args:
        method: A function of zero-filled images and masks, and perhaps metadata.
        tile: Rows and columns of a tile; its slices are the matter of a data set.

    Shape:
        From images `(batch, coils, [slices,] rows, cols)` and their masks to magnitudes
        `(batch, [slices,] rows, cols)`.

    Examples:
        >>> halves = in_tiles(lambda image, mask: image, Tile(rows=4))
        >>> image = torch.randn(1, 1, 8, 6, dtype=torch.complex64)
        >>> torch.allclose(halves(image, torch.ones(1, 1, 1, 6)), image[:, 0].abs())
        True
    """

    def at_once(images: Tensor, *data: Tensor, **scale: Tensor) -> Tensor:
        return root_sum_of_squares(method(images, *data, **scale), dim=1)

    in_parts = _along(COLS, tile.cols, _along(ROWS, tile.rows, at_once))

    def magnitudes(images: Tensor, *data: Tensor) -> Tensor:
        return in_parts(images, *data, **scale_of_whole(method, images))

    return magnitudes


def _along(axis: int, size: int | None, magnitudes: Magnitudes) -> Magnitudes:
    if size is None:
        return magnitudes

    def tiled(images: Tensor, *data: Tensor, **scale: Tensor) -> Tensor:
        length = images.shape[axis]
        own = min(size, length)
        starts = slab_starts(length, own, max(1, own // 2))
        tiles = {
            s: magnitudes(images.narrow(axis, s, own), *data, **scale) for s in starts
        }
        return _blended(tiles, axis, length)

    return tiled


def _blended(tiles: Mapping[int, Tensor], axis: int, length: int) -> Tensor:
    """Blend tiles along one axis as slabs are blended along the slices."""
    first = next(iter(tiles.values()))
    others = first.movedim(axis, 0).shape[1:]
    slabs = {
        start: tile.movedim(axis, 0).flatten(1).unsqueeze(-1).float().cpu().numpy()
        for start, tile in tiles.items()
    }
    image = torch.from_numpy(blend(slabs, length)).to(first.device)
    return image.view(length, *others).movedim(0, axis)
