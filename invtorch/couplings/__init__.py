"""Couplings: layers that transform one part of the state, conditioned on the other."""

from invtorch.couplings.additive import AdditiveCoupling
from invtorch.couplings.affine import AffineCoupling
from invtorch.couplings.conditional_affine import ConditionalAffine
from invtorch.couplings.dynamics import LeapfrogStep, MomentumStep
from invtorch.couplings.orthogonal import OrthogonalCoupling
from invtorch.couplings.reversible_block import ReversibleBlock
from invtorch.couplings.spline import SplineCoupling

__all__ = [
    "AdditiveCoupling",
    "AffineCoupling",
    "ConditionalAffine",
    "LeapfrogStep",
    "MomentumStep",
    "OrthogonalCoupling",
    "ReversibleBlock",
    "SplineCoupling",
]
