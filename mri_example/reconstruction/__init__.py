"""From undersampled files to files of reconstructions."""

from mri_example.reconstruction.device import check_device
from mri_example.reconstruction.folder import reconstruct
from mri_example.reconstruction.method import Method, tile_axes, zero_filled
from mri_example.reconstruction.tile import WHOLE, Tile

__all__ = [
    "WHOLE",
    "Method",
    "Tile",
    "check_device",
    "reconstruct",
    "tile_axes",
    "zero_filled",
]
