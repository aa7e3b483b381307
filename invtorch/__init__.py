"""Invertible PyTorch modules, and networks of any depth in the memory of one layer."""

from invtorch.composite import Composite, Step
from invtorch.conditioners import GatedResidualBlock
from invtorch.containers import Conjugation, InvertibleSequential, WithoutContext
from invtorch.couplings import (
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    LeapfrogStep,
    MomentumStep,
    OrthogonalCoupling,
    ReversibleBlock,
)
from invtorch.diagnosis import diagnose
from invtorch.engine import DriftError, DriftWarning
from invtorch.mixing import Householder1x1
from invtorch.module import InvertibleModule, VolumePreserving

__all__ = [
    "AdditiveCoupling",
    "AffineCoupling",
    "Composite",
    "ConditionalAffine",
    "Conjugation",
    "DriftError",
    "DriftWarning",
    "GatedResidualBlock",
    "Householder1x1",
    "InvertibleModule",
    "InvertibleSequential",
    "LeapfrogStep",
    "MomentumStep",
    "OrthogonalCoupling",
    "ReversibleBlock",
    "Step",
    "VolumePreserving",
    "WithoutContext",
    "diagnose",
]
__version__ = "0.1.0"
