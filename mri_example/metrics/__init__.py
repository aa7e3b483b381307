"""The metrics of the fastMRI challenge, per volume."""

from mri_example.metrics.measures import mse, nmse, psnr, ssim
from mri_example.metrics.scores import METRICS, Scores, Summary, score, summarize

__all__ = [
    "METRICS",
    "Scores",
    "Summary",
    "mse",
    "nmse",
    "psnr",
    "score",
    "ssim",
    "summarize",
]
