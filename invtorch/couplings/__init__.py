"""Couplings: one part of the state conditions what is done to the other."""

from invtorch.couplings.additive import AdditiveCoupling
from invtorch.couplings.affine import AffineCoupling
from invtorch.couplings.orthogonal import OrthogonalCoupling

__all__ = ["AdditiveCoupling", "AffineCoupling", "OrthogonalCoupling"]
