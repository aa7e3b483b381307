"""Functions with an inverse, applied to each entry of a state."""

from invtorch.elementwise.leaky_relu import LeakyReLU
from invtorch.elementwise.leaky_tanh import LeakyTanh
from invtorch.elementwise.logit import Logit

__all__ = ["LeakyReLU", "LeakyTanh", "Logit"]
