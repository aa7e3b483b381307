"""Reconstruction models and what they are trained with."""

from invtorch.nets import IRIM
from mri_example.model.authors import load_authors_weights
from mri_example.model.base import Reconstructor
from mri_example.model.configuration import (
    IRIM2D,
    IRIM3D,
    MODELS,
    RIM,
    ChallengeIRIM,
    ModelConfig,
    UNet,
    model_config,
)
from mri_example.model.loss import (
    NormalizedL1,
    StructuralDissimilarity,
    SubsampledNMSE,
    magnitudes,
)
from mri_example.model.reconstructor import IRIMReconstructor
from mri_example.model.rim import RIMReconstructor
from mri_example.model.unet import UNetReconstructor

__all__ = [
    "IRIM",
    "IRIM2D",
    "IRIM3D",
    "MODELS",
    "RIM",
    "ChallengeIRIM",
    "IRIMReconstructor",
    "ModelConfig",
    "NormalizedL1",
    "RIMReconstructor",
    "Reconstructor",
    "StructuralDissimilarity",
    "SubsampledNMSE",
    "UNet",
    "UNetReconstructor",
    "load_authors_weights",
    "magnitudes",
    "model_config",
]
