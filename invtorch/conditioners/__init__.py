"""Conditioners: the networks inside couplings. They need no inverse."""

from invtorch.conditioners.gated import GatedResidualBlock

__all__ = ["GatedResidualBlock"]
