"""Which columns of k-space are measured."""

from mri_example.sampling.masks import MaskFunction, Seed, volume_seed
from mri_example.sampling.patterns import PATTERNS
from mri_example.sampling.undersampling import undersample

__all__ = ["PATTERNS", "MaskFunction", "Seed", "undersample", "volume_seed"]
