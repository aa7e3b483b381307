"""Which columns of k-space are measured."""

from mri_example.sampling.masks import MaskFunction, Seed, mask_function, volume_seed
from mri_example.sampling.patterns import PATTERNS

__all__ = ["PATTERNS", "MaskFunction", "Seed", "mask_function", "volume_seed"]
