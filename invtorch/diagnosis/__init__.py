"""When can the inverse of a model be trusted? Measure it, layer by layer."""

from invtorch.diagnosis.diagnose import diagnose
from invtorch.diagnosis.report import Diagnosis, LayerDiagnosis

__all__ = ["Diagnosis", "LayerDiagnosis", "diagnose"]
