"""Files in the fastMRI layout: reading, writing, simulating, and slices for training."""

from mri_example.data.files import KSpaceFile, volume_paths, write_reconstruction
from mri_example.data.simulate import Simulation, simulate_demo, simulate_volumes
from mri_example.data.slices import Sample, SliceDataset

__all__ = [
    "KSpaceFile",
    "Sample",
    "Simulation",
    "SliceDataset",
    "simulate_demo",
    "simulate_volumes",
    "volume_paths",
    "write_reconstruction",
]
