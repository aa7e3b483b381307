"""Single-coil k-space simulated from magnitude images.

Simulated data are not raw data: phase, noise and sampling are modelled, and scores on
them do not compare with those of the fastMRI leaderboard. Every file says so in its
attribute `simulated`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from mri_example.data.anatomy import Volume, embedded_anatomy
from mri_example.data.files import write_kspace
from mri_example.data.header import Header
from mri_example.errors import InputError
from mri_example.signal import center_crop, fft2c, ifft2c

UNIT = 3e-4  # maximum of the images, as in the fastMRI files
EMPTY = 0.1  # a slice nowhere above this share of the volume's maximum is empty
OVERSAMPLING = 2


@dataclass(frozen=True)
class Simulation:
    """How k-space is simulated.

    Args:
        size: Rows and columns of the images; slices are padded to a square and resized.
        noise: Standard deviation of the complex noise, relative to the image maximum.
        phase: Largest coefficient of the smooth phase, a polynomial of order two, in
            radians.
        seed: What phase and noise follow from, together with the name of the volume.

    Raises:
        InputError: If `size` is below 8, or noise or phase are negative.
    """

    size: int = 96
    noise: float = 0.005
    phase: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 8 or self.noise < 0 or self.phase < 0:
            raise InputError(
                f"size is {self.size}, noise {self.noise} and phase {self.phase}, but "
                f"size must be at least 8 and the others must not be negative"
            )

    def kspace(self, name: str, magnitudes: Volume) -> NDArray[np.complex64]:
        """Simulate the k-space of a volume.

        Args:
            name: Name of the volume.
            magnitudes: `(slices, rows, cols)`.

        Returns:
            `(slices, 2 * size, size)`: the readout, along rows, is oversampled twice.
        """
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        images = self._square(magnitudes) * np.exp(
            1j * self._phase(rng, len(magnitudes))
        )
        margin = (OVERSAMPLING - 1) * self.size // 2
        images = np.pad(images, ((0, 0), (margin, margin), (0, 0)))
        kspace = fft2c(torch.from_numpy(images)).numpy()
        noise = rng.standard_normal((2, *kspace.shape)) * self.noise / np.sqrt(2)
        return (UNIT * (kspace + noise[0] + 1j * noise[1])).astype(np.complex64)

    def write(self, path: Path, magnitudes: Volume, acquisition: str) -> None:
        """Simulate a volume and write its file."""
        kspace = self.kspace(path.stem, magnitudes)
        images = ifft2c(torch.from_numpy(kspace)).abs()
        target = center_crop(images, (self.size, self.size)).numpy()
        size = self.size
        header = Header(
            encoded=(OVERSAMPLING * size, size, 1),
            recon=(size, size, 1),
            center=size // 2,
            maximum=size - 1,
        )
        attributes = {
            "acquisition": acquisition,
            "patient_id": path.stem.split("_")[0],
            "simulated": f"k-space simulated from magnitude images: {self}",
        }
        write_kspace(path, kspace, target, header, attributes)

    def _square(self, magnitudes: Volume) -> NDArray[np.float64]:
        slices, rows, cols = magnitudes.shape
        side = max(rows, cols)
        before = ((side - rows) // 2, (side - cols) // 2)
        after = (side - rows - before[0], side - cols - before[1])
        square = np.pad(
            magnitudes, ((0, 0), (before[0], after[0]), (before[1], after[1]))
        )
        shape = (slices, self.size, self.size)
        resized = resize(
            square.astype(np.float64), shape, anti_aliasing=side > self.size
        )
        images: NDArray[np.float64] = np.clip(resized / resized.max(), 0, None)
        return images

    def _phase(self, rng: np.random.Generator, slices: int) -> NDArray[np.float64]:
        line = np.linspace(-1, 1, self.size)
        z, y, x = np.meshgrid(np.linspace(-1, 1, slices), line, line, indexing="ij")
        terms = (np.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y)
        weights = rng.uniform(-self.phase, self.phase, len(terms))
        phase: NDArray[np.float64] = sum(
            w * t for w, t in zip(weights, terms, strict=True)
        )
        return phase


def simulate_demo(root: Path, simulation: Simulation) -> list[Path]:
    """Write the demo's data set from the embedded anatomy, split by subject.

    Training: subjects "sagittal" and "average" along all three axes and the first 16
    slices of "epi"; validation: the rest of "epi"; test: all slices of "coronal" that are
    not empty. Files that exist are left as they are.

    Args:
        root: Folder for `singlecoil_train`, `singlecoil_val` and `singlecoil_test`.
        simulation: How to simulate.

    Returns:
        The files that were written now.
    """
    heads = embedded_anatomy()
    epi = heads["epi"]
    plan = {
        f"train/{name}_axis{axis}": np.ascontiguousarray(
            np.moveaxis(heads[name], axis, 0)
        )
        for name in ("sagittal", "average")
        for axis in range(3)
    }
    plan |= {
        "train/epi_first": epi[:16],
        "val/epi_rest": epi[16:],
        "test/coronal_axis0": heads["coronal"],
    }
    written = []
    for name, volume in plan.items():
        path = root / f"singlecoil_{name}.h5"
        if not path.exists():
            kind = "SIMULATED_EPI" if "epi" in name else "SIMULATED_T1"
            simulation.write(path, without_empty_slices(volume), kind)
            written.append(path)
    return written


def simulate_volumes(
    volumes: dict[str, Volume], folder: Path, simulation: Simulation
) -> list[Path]:
    """Write one file for each volume, for example those of `nifti_volumes`.

    Args:
        volumes: Magnitudes by name.
        folder: Where the files go, for example `.../singlecoil_train`.
        simulation: How to simulate.

    Returns:
        The files that were written now; those that exist are left as they are.
    """
    written = []
    for name, volume in volumes.items():
        path = folder / f"{name}.h5"
        if not path.exists():
            simulation.write(path, without_empty_slices(volume), "SIMULATED")
            written.append(path)
    return written


def without_empty_slices(volume: Volume) -> Volume:
    """Drop the slices that are nowhere above a tenth of the volume's maximum."""
    filled: Volume = volume[volume.max(axis=(1, 2)) > EMPTY * volume.max()]
    return filled
