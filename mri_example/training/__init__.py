"""Training with Lightning."""

from mri_example.training.checkpoints import export, export_authors, load
from mri_example.training.data import MaskConfig, SliceData
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask

__all__ = [
    "MaskConfig",
    "ReconstructionTask",
    "SliceData",
    "export",
    "export_authors",
    "fit",
    "load",
]
