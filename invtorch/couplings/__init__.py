"""Couplings: layers that transform one part of the state, conditioned on the other."""

from invtorch.couplings.additive import AdditiveCoupling
from invtorch.couplings.affine import AffineCoupling
from invtorch.couplings.orthogonal import OrthogonalCoupling

__all__ = ["AdditiveCoupling", "AffineCoupling", "OrthogonalCoupling"]
