"""Changes of an image that leave it as likely as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def flip_and_turn(image: Tensor, generator: torch.Generator) -> Tensor:
    """Flip either axis, exchange the axes of a square, and turn the phase, by chance.

    Args:
        image: Complex, `(..., rows, cols)`; coils and slices are changed alike.
        generator: What chance follows from.
    """
    chance = torch.rand(4, generator=generator)
    axes = [axis - 2 for axis in (0, 1) if chance[axis] < 0.5]
    image = image.flip(axes)
    if chance[2] < 0.5 and image.shape[-2] == image.shape[-1]:
        image = image.mT
    return image * torch.polar(torch.ones(()), 2 * torch.pi * chance[3])
