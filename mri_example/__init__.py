"""The i-RIM and the fastMRI pipeline around it, built on invtorch."""

from invtorch.nets import IRIM

__all__ = ["IRIM"]
