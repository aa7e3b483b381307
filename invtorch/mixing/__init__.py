"""Layers that mix the channels at every position."""

from invtorch.mixing.householder import Householder1x1

__all__ = ["Householder1x1"]
