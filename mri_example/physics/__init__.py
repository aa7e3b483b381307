"""The measurements of accelerated MRI and the gradients of their likelihoods."""

from mri_example.fourier import fftc, ifftc
from mri_example.physics.likelihood import LikelihoodGradient, SenseLikelihoodGradient
from mri_example.physics.measurement import Measurement
from mri_example.physics.sense import Sense
from mri_example.physics.sensitivity import sensitivity_maps
from mri_example.physics.single_coil import SingleCoil

__all__ = [
    "LikelihoodGradient",
    "Measurement",
    "Sense",
    "SenseLikelihoodGradient",
    "SingleCoil",
    "fftc",
    "ifftc",
    "sensitivity_maps",
]
