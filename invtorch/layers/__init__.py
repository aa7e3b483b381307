"""Elementary invertible layers, one a file."""

from invtorch.layers.additive import AdditiveCoupling
from invtorch.layers.affine import AffineCoupling
from invtorch.layers.householder import Householder1x1
from invtorch.layers.orthogonal import OrthogonalCoupling

__all__ = ["AdditiveCoupling", "AffineCoupling", "Householder1x1", "OrthogonalCoupling"]
