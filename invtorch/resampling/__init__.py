"""Layers that exchange resolution for channels, or change the shape of a state."""

from invtorch.resampling.flatten import Flatten
from invtorch.resampling.haar import HaarDownsample
from invtorch.resampling.orthogonal import OrthogonalDownsample
from invtorch.resampling.pixel_unshuffle import PixelUnshuffle

__all__ = ["Flatten", "HaarDownsample", "OrthogonalDownsample", "PixelUnshuffle"]
