"""Reconstruction models and what they are trained with."""

from mri_example.model.irim import IRIM
from mri_example.model.loss import SubsampledNMSE
from mri_example.model.reconstructor import IRIMReconstructor

__all__ = ["IRIM", "IRIMReconstructor", "SubsampledNMSE"]
