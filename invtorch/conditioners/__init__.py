"""Networks that condition a coupling; they need no inverse."""

from invtorch.conditioners.gated import GatedResidualBlock

__all__ = ["GatedResidualBlock"]
