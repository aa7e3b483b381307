"""The i-RIM and the fastMRI pipeline around it, built on invtorch."""

from mri_example.model import IRIM

__all__ = ["IRIM"]
