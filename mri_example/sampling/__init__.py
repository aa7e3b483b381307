"""Which columns of k-space are measured."""

from mri_example.sampling.masks import (
    MaskFunction,
    Seed,
    undersample,
    volume_seed,
)
from mri_example.sampling.patterns import PATTERNS

__all__ = ["PATTERNS", "MaskFunction", "Seed", "undersample", "volume_seed"]
