"""Layers that multiply the channels at every position with a matrix."""

from invtorch.mixing.householder import Householder1x1

__all__ = ["Householder1x1"]
