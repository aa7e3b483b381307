"""Files in the fastMRI layout: read, written, simulated, and cut into slices."""

from mri_example.data.anatomy import embedded_anatomy, nifti_volumes
from mri_example.data.augmentation import flip_and_turn
from mri_example.data.files import KSpaceFile, read_reconstruction, volume_paths
from mri_example.data.raw import convert_raw
from mri_example.data.simulate import Simulation
from mri_example.data.slabs import blend, slab_starts
from mri_example.data.slices import Sample, SliceDataset
from mri_example.data.volumes import simulate_demo, simulate_volumes
from mri_example.data.writing import whole_file, write_kspace, write_reconstruction

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
