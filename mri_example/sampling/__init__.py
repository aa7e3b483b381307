"""Which columns of k-space are measured, in 3-D acquisitions which slices as well."""

from mri_example.sampling.interface import Masks, Seed, volume_seed
from mri_example.sampling.mask_file import MaskFile
from mri_example.sampling.masks import MaskFunction
from mri_example.sampling.patterns import PATTERNS
from mri_example.sampling.poisson import PoissonMaskFunction
from mri_example.sampling.undersampling import undersample
from mri_example.sampling.volumes import encoded_axes

__all__ = [
    "PATTERNS",
    "MaskFile",
    "MaskFunction",
    "Masks",
    "PoissonMaskFunction",
    "Seed",
    "encoded_axes",
    "undersample",
    "volume_seed",
]
