"""Invertible PyTorch modules, and networks of any depth in the memory of one layer."""

from invtorch.base import Composite, InvertibleModule, Step, VolumePreserving
from invtorch.conditioners import GatedResidualBlock
from invtorch.containers import Conjugation, InvertibleSequential, WithoutContext
from invtorch.diagnosis import diagnose
from invtorch.engine import DriftError
from invtorch.layers import (
    AdditiveCoupling,
    AffineCoupling,
    Householder1x1,
    OrthogonalCoupling,
)

__all__ = [
    "AdditiveCoupling",
    "AffineCoupling",
    "Composite",
    "Conjugation",
    "DriftError",
    "GatedResidualBlock",
    "Householder1x1",
    "InvertibleModule",
    "InvertibleSequential",
    "OrthogonalCoupling",
    "Step",
    "VolumePreserving",
    "WithoutContext",
    "diagnose",
]
__version__ = "0.1.0"
