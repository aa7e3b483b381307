"""Layers that mix or scale the channels in the same way at every position."""

from invtorch.mixing.householder import Householder1x1
from invtorch.mixing.lu import LU1x1
from invtorch.mixing.orthogonal import Orthogonal1x1
from invtorch.mixing.permute import Permute
from invtorch.mixing.scale_and_shift import ActNorm, ElementwiseAffine

Glow1x1 = LU1x1

__all__ = [
    "ActNorm",
    "ElementwiseAffine",
    "Glow1x1",
    "Householder1x1",
    "LU1x1",
    "Orthogonal1x1",
    "Permute",
]
