"""Training with Lightning."""

from mri_example.training.checkpoints import load_model
from mri_example.training.configuration import MaskConfig, TrainingConfig
from mri_example.training.export import export, export_model, load
from mri_example.training.fit import fit, fit_once
from mri_example.training.memory import step_memory

__all__ = [
    "MaskConfig",
    "TrainingConfig",
    "export",
    "export_model",
    "fit",
    "fit_once",
    "load",
    "load_model",
    "step_memory",
]
