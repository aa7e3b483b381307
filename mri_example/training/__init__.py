"""Training with Lightning."""

from mri_example.training.checkpoints import load_model
from mri_example.training.configuration import MaskConfig, ModelConfig, TrainingConfig
from mri_example.training.fit import fit

__all__ = ["MaskConfig", "ModelConfig", "TrainingConfig", "fit", "load_model"]
