"""Measure the accuracy of the inverse and the gradients of a model, layer by layer."""

from invtorch.diagnosis.diagnose import diagnose
from invtorch.diagnosis.report import Diagnosis, LayerDiagnosis

__all__ = ["Diagnosis", "LayerDiagnosis", "diagnose"]
