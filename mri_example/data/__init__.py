"""Files in the fastMRI layout: read, written, simulated, and cut into slices."""

from mri_example.data.anatomy import embedded_anatomy, nifti_volumes
from mri_example.data.convert import convert_raw
from mri_example.data.dataset import (
    Sample,
    SliceDataset,
    blend,
    flip_and_turn,
    slab_starts,
)
from mri_example.data.files import (
    KSpaceFile,
    read_reconstruction,
    volume_paths,
    whole_file,
    write_kspace,
    write_reconstruction,
)
from mri_example.data.simulate import Simulation, simulate_demo, simulate_volumes

__all__ = [
    "KSpaceFile",
    "Sample",
    "Simulation",
    "SliceDataset",
    "blend",
    "convert_raw",
    "embedded_anatomy",
    "flip_and_turn",
    "nifti_volumes",
    "read_reconstruction",
    "simulate_demo",
    "simulate_volumes",
    "slab_starts",
    "volume_paths",
    "whole_file",
    "write_kspace",
    "write_reconstruction",
]
