"""The metrics of the fastMRI challenge, per volume."""

from mri_example.metrics.bootstrap import Interval, bootstrap
from mri_example.metrics.measures import mse, nmse, psnr, ssim
from mri_example.metrics.scores import METRICS, Scores, Summary, score, summarize

__all__ = [
    "METRICS",
    "Interval",
    "Scores",
    "Summary",
    "bootstrap",
    "mse",
    "nmse",
    "psnr",
    "score",
    "ssim",
    "summarize",
]
