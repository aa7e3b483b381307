"""Training images of random contrast, so that networks learn edges and not tissues."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mri_example.data.dataset import SliceDataset, flip_and_turn
from mri_example.models import Reconstructor
from mri_example.training.data import SliceData
from mri_example.transforms import root_sum_of_squares

KNOTS, LARGEST = 5, 3.0  # of the curve, and the factor at most


class ContrastData(SliceData):
    """`SliceData` whose training images also get another contrast by chance."""

    def training_slices(self, model: Reconstructor) -> SliceDataset:
        """Return the training slices, or slabs, that a model takes."""
        slices = super().training_slices(model)
        slices.augment = flip_and_recontrast
        return slices


def flip_and_recontrast(image: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, turn and give another contrast, by chance, an image of all coils."""
    return recontrast(flip_and_turn(image, generator), generator)


def recontrast(image: Tensor, generator: torch.Generator) -> Tensor:
    r"""Multiply by a random positive function of the magnitude.

    $$ x' = x\, e^{g(|x| / \max |x|)} $$

    $g$ is piecewise linear, with values drawn between $-\log 3$ and $\log 3$ at five
    knots. Phases stay, and so do the ratios of the coils of a pixel and most edges;
    what was bright can become dark.

    Args:
        image: A complex image, its coils first.
        generator: What the curve is drawn from.

    Returns:
        The image, of the same shape.

    Example:
        >>> image = torch.randn(2, 8, 8, dtype=torch.complex64)
        >>> changed = recontrast(image, torch.Generator().manual_seed(0))
        >>> torch.allclose((changed / image).imag, torch.zeros(2, 8, 8), atol=1e-5)
        True
    """
    values = torch.rand(KNOTS, generator=generator).mul(2).sub(1) * math.log(LARGEST)
    magnitude = root_sum_of_squares(image, dim=0)
    peak = magnitude.max().clamp(min=torch.finfo(magnitude.dtype).tiny)
    place = magnitude / peak * (KNOTS - 1)
    left = place.long().clamp(max=KNOTS - 2)
    factor = torch.lerp(values[left], values[left + 1], place - left).exp()
    return image * factor
