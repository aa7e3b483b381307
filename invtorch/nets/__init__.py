"""Networks from the literature, built from the layers of invtorch."""

from invtorch.nets.glow import Glow
from invtorch.nets.invertible_unet import InvertibleUNet
from invtorch.nets.irim import IRIM

__all__ = ["IRIM", "Glow", "InvertibleUNet"]
