"""Convert the residual blocks of a model, so that they train in constant memory."""

from invtorch.convert.reversible import Report, ReversibleBlocks, reversible

__all__ = ["Report", "ReversibleBlocks", "reversible"]
