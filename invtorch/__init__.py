"""Invertible PyTorch modules, and networks of any depth in the memory of one layer."""

from invtorch._version import __version__ as __version__
from invtorch.composite import Composite, Step
from invtorch.conditioners import GatedResidualBlock
from invtorch.containers import (
    Conjugation,
    InvertibleSequential,
    Join,
    OnPart,
    Parallel,
    Repeat,
    Split,
    WithoutContext,
)
from invtorch.couplings import (
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    LeapfrogStep,
    MomentumStep,
    OrthogonalCoupling,
    ReversibleBlock,
    SplineCoupling,
)
from invtorch.diagnosis import diagnose
from invtorch.elementwise import LeakyReLU, LeakyTanh, Logit
from invtorch.engine import DriftError, DriftWarning
from invtorch.mixing import (
    ActNorm,
    ElementwiseAffine,
    Glow1x1,
    Householder1x1,
    LU1x1,
    Orthogonal1x1,
    Permute,
)
from invtorch.module import InvertibleModule, VolumePreserving
from invtorch.resampling import (
    Flatten,
    HaarDownsample,
    OrthogonalDownsample,
    PixelUnshuffle,
)
from invtorch.residual_flow import ResidualFlow

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Composite",
    "ConditionalAffine",
    "Conjugation",
    "DriftError",
    "DriftWarning",
    "ElementwiseAffine",
    "Flatten",
    "GatedResidualBlock",
    "Glow1x1",
    "HaarDownsample",
    "Householder1x1",
    "InvertibleModule",
    "InvertibleSequential",
    "Join",
    "LU1x1",
    "LeakyReLU",
    "LeakyTanh",
    "LeapfrogStep",
    "Logit",
    "MomentumStep",
    "OnPart",
    "Orthogonal1x1",
    "OrthogonalCoupling",
    "OrthogonalDownsample",
    "Parallel",
    "Permute",
    "PixelUnshuffle",
    "Repeat",
    "ResidualFlow",
    "ReversibleBlock",
    "SplineCoupling",
    "Split",
    "Step",
    "VolumePreserving",
    "WithoutContext",
    "diagnose",
]
