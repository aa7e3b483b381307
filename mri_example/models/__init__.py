"""Reconstruction models."""

from mri_example.models.authors import load_authors_weights
from mri_example.models.base import Reconstructor
from mri_example.models.irim import IRIM2D, IRIM3D, ChallengeIRIM
from mri_example.models.registry import MODELS, build, describe
from mri_example.models.rim import RIM
from mri_example.models.unet import UNet

__all__ = [
    "IRIM2D",
    "IRIM3D",
    "MODELS",
    "RIM",
    "ChallengeIRIM",
    "Reconstructor",
    "UNet",
    "build",
    "describe",
    "load_authors_weights",
]
