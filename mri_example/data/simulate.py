"""K-space simulated from magnitude images.

Simulated data are not raw data: phase, noise and sampling are modelled, and scores on
them do not compare with those of the fastMRI leaderboard. Every file says so in its
attribute `simulated`.
"""

import logging
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from mri_example.data.anatomy import Volume, embedded_anatomy
from mri_example.data.files import KSpaceFile, write_kspace
from mri_example.data.header import Header
from mri_example.errors import require
from mri_example.progress import shown
from mri_example.transforms import fftc, fitted, magnitudes

Random: TypeAlias = np.random.Generator
LOG = logging.getLogger(__name__)
UNIT = 3e-4  # maximum of the images, as in the fastMRI files
OVERSAMPLING = 2
RADIUS = 1.3  # of the ring of coils, in half widths of the image
REACH = 0.9  # distance at which a coil sees half of its largest signal, likewise
EMPTY = 0.01  # share of a slice that must reach a tenth of the volume's maximum


@dataclass(frozen=True)
class Simulation:
    r"""How k-space is simulated: $k_c = F(S_c x e^{i\varphi}) + \varepsilon_c$.

    The image $x$ is padded with zeros to twice its rows, the oversampled readout; the
    phase $\varphi$ is a random polynomial of order two over the volume; the maps $S_c$
    of several coils are those of `coil_maps`, and a single coil sees all alike; the
    noise $\varepsilon$ is complex and Gaussian, white in k-space and among coils.

    Args:
        size: Rows and columns of the images; slices are padded to a square and resized.
        noise: Standard deviation of the complex noise, relative to the image maximum.
        phase: Largest coefficient of the phase, in radians.
        coils: Number of coils; 1 makes single-coil files.
        seed: What everything random follows from, with the name of the volume.
    """

    size: int = 96
    noise: float = 0.005
    phase: float = 2.0
    coils: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.noise, self.phase, self.seed)
        text = f"size is {self.size}, noise {self.noise}, phase {self.phase} and seed "
        text += f"{self.seed}, but size must be at least 8, none negative or not finite"
        require(self.size >= 8 and all(0 <= n < math.inf for n in numbers), text)
        text = f"coils is {self.coils}, but there must be at least one coil"
        require(self.coils >= 1, text)

    @property
    def challenge(self) -> Literal["singlecoil", "multicoil"]:
        """First part of the names of folders, `singlecoil` or `multicoil`."""
        return "singlecoil" if self.coils == 1 else "multicoil"

    def __str__(self) -> str:
        return f"k-space simulated from magnitude images: {self!r}"

    def kspace(self, name: str, volume: Volume) -> NDArray[np.complex64]:
        """Simulate the k-space of a volume, `(slices, [coils,] 2 * size, size)`."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        shape = (len(volume), self.size, self.size)
        phase = torch.from_numpy(_smooth(rng, shape, self.phase))
        images = torch.polar(_square(volume, self.size), phase)
        if self.coils > 1:
            maps = torch.from_numpy(coil_maps(self.coils, shape, rng)).movedim(0, 1)
            images = images.unsqueeze(1) * maps
        slices = shown(images.unbind(), f"simulate {name}", "slice")
        return np.stack([self._measured(image, rng) for image in slices])

    def write(self, path: Path, volume: Volume, patient: str) -> None:
        """Simulate a volume and write its file; the stem of the path is its name.

        k-space is fully sampled, in test files too, so that reconstructions of all of
        them can be evaluated. The target is the image of the noisy k-space.
        """
        kspace, size = self.kspace(path.stem, volume), self.size
        sizes = (OVERSAMPLING * size, size, 1), (size, size, 1)
        header = Header(*sizes, center=size // 2, maximum=size - 1)
        told = {"acquisition": "SIMULATED", "patient_id": patient}
        told |= {"simulated": str(self), "source": _source(volume)}
        target = magnitudes(kspace, (size, size))
        write_kspace(path, kspace, target, header, told)

    def _measured(self, image: Tensor, rng: Random) -> NDArray[np.complex64]:
        kspace = fftc(fitted(image, (OVERSAMPLING * self.size, self.size))).numpy()
        real, imaginary = rng.standard_normal((2, *kspace.shape))
        noise = self.noise / np.sqrt(2) * (real + 1j * imaginary)
        measured: NDArray[np.complex64] = (UNIT * (kspace + noise)).astype("complex64")
        return measured


def _source(volume: Volume) -> str:
    """Return what tells an image from others of the same name."""
    return sha256(volume.tobytes()).hexdigest()


def _square(volume: Volume, size: int) -> Tensor:
    """Pad slices to a square, resize them, and scale the volume's maximum to one."""
    images = torch.from_numpy(volume.astype(np.float64)).unsqueeze(1)
    square = fitted(images, (max(images.shape[-2:]),) * 2)
    resized = interpolate(square, (size, size), mode="bilinear", antialias=True)
    return (resized / resized.max()).squeeze(1)


def _grid(shape: Sequence[int]) -> list[NDArray[np.float64]]:
    """Return the coordinates of the axes, each from -1 to 1."""
    lines = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    return [*np.meshgrid(*lines, indexing="ij", sparse=True)]


def _smooth(rng: Random, shape: tuple[int, int, int], largest: float) -> Any:
    """Draw a polynomial of order two."""
    z, y, x = _grid(shape)
    terms = (1, x, y, z, x * y, y * z, x * z, x * x - y * y)
    weights = rng.uniform(-largest, largest, len(terms))
    phase = sum(w * term for w, term in zip(weights, terms, strict=True))
    return np.broadcast_to(phase, shape).copy()


def coil_maps(coils: int, shape: tuple[int, int, int], rng: Random) -> Any:
    r"""Simulate smooth maps `(coils, *shape)` of coils on a ring around the head.

    $$ S_c(r) \propto \frac{e^{i (\varphi_c + \kappa_c \cdot r)}}
                           {1 + \lVert r - r_c \rVert^2 / w^2},
       \qquad \sum_c |S_c(r)|^2 = 1 $$

    The phase $\varphi_c$ is the angle of the coil plus a random one, and turns slowly
    along a random direction $\kappa_c$.
    """
    z, y, x = _grid(shape)
    maps = np.empty((coils, *shape), dtype=np.complex128)
    for coil, one in enumerate(maps):
        angle = 2 * np.pi * (coil + rng.uniform(-0.2, 0.2)) / coils
        height = rng.uniform(-0.5, 0.5)
        across, below = RADIUS * np.cos(angle), RADIUS * np.sin(angle)
        away = (x - across) ** 2 + (y - below) ** 2 + (z - height) ** 2
        right, down, along = rng.uniform(-0.5, 0.5, 3)
        phase = angle + rng.uniform(0, 2 * np.pi) + right * x + down * y + along * z
        one[:] = np.exp(1j * phase) / (1 + away / REACH**2)
    return maps / np.linalg.norm(maps, axis=0)


def simulate_demo(root: Path, simulation: Simulation) -> list[Path]:
    """Write the demo's data set from the embedded anatomy, split by subject.

    Training: subjects "sagittal" and "average" along all three axes and the first 16
    slices of "epi"; validation: the rest of "epi"; test: "coronal". The folders in
    `root` are `singlecoil_train`, ..., of several coils `multicoil_train`, ...
    """
    heads = embedded_anatomy()
    plan = {
        f"train/{subject}_axis{axis}": np.moveaxis(heads[subject], axis, 0)
        for subject in ("sagittal", "average")
        for axis in range(3)
    }
    plan["train/epi_first"] = heads["epi"][:16]
    plan["val/epi_rest"] = heads["epi"][16:]
    plan["test/coronal_axis0"] = heads["coronal"]
    written = []
    for name, volume in plan.items():
        path = root / f"{simulation.challenge}_{name}.h5"
        patient = path.stem.split("_")[0]
        written += _write_missing(path, volume, patient, simulation, logging.DEBUG)
    return written


def simulate_volumes(
    volumes: Iterable[tuple[str, Volume]], folder: Path, simulation: Simulation
) -> list[Path]:
    """Write one file for each volume, for example those of `nifti_volumes`."""
    written = []
    for name, volume in volumes:
        path = folder / f"{name}.h5"
        written += _write_missing(path, volume, name, simulation, logging.WARNING)
    return written


def without_empty_slices(volume: Volume) -> Volume:
    """Drop slices at both ends of which less than 1 % reach 10 % of the maximum."""
    share = (volume > 0.1 * volume.max()).mean(axis=(1, 2))
    filled = np.flatnonzero(share >= EMPTY)
    return volume[filled[0] : filled[-1] + 1] if len(filled) else volume[:0]


def _write_missing(
    path: Path, volume: Volume, patient: str, simulation: Simulation, level: int
) -> list[Path]:
    """Return the path if it is written now; a file of the same simulation is kept."""
    filled = without_empty_slices(volume)
    text = f"every slice of {patient} is empty, less than 1 % of it reaches a tenth of "
    require(len(filled), f"{text}the maximum: take another volume")
    if path.exists():
        before: Any = KSpaceFile.inspect(path).attributes
        told = before.get("simulated", "measured")
        text = f"{path} exists and is {told}, not {simulation!r}: choose another "
        require(told == str(simulation), f"{text}folder or the same options")
        text = f"{path} exists and is of another image: choose another folder"
        require(before.get("source") == _source(filled), text)
        return []
    if left_out := len(volume) - len(filled):
        LOG.log(level, "%s: %d empty slices at its ends left out", path, left_out)
    simulation.write(path, filled, patient)
    return [path]
