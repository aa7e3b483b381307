"""Compressed sensing with sigpy: few wavelet coefficients that fit the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from mri_example.evaluate import evaluate
from mri_example.masks import Masks
from mri_example.reconstruct import reconstruct
from mri_example.transforms import fftc

WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ITERATIONS = 60
CENTER, KERNEL = 8, 5  # columns that maps are calibrated on, and of a kernel
INSTALLED = find_spec("sigpy") is not None


@dataclass(frozen=True)
class Wavelet:
    r"""Minimize $\tfrac12 \lVert P F S x - d \rVert^2 + \lambda \lVert W x \rVert_1$.

    $W$ is the Daubechies-4 transform. Every slice is divided by the largest magnitude
    of its zero-filled image first, so that one $\lambda$ fits all.

    Args:
        weight: $\lambda$.
        maps: Estimate one image of all coils through maps from ESPIRiT, instead of one
            of each coil.

    References:
        Lustig et al., *Sparse MRI*, 2007; Uecker et al., *ESPIRiT*, 2014.
    """

    weight: float
    maps: bool = False

    def __call__(self, zero_filled: Tensor, mask: Tensor) -> Tensor:
        """Return the images, complex `(batch, coils or 1, rows, cols)`."""
        shape = zero_filled.shape
        if self.maps:
            maps = torch.stack([_maps(images) for images in zero_filled])
        else:
            zero_filled = zero_filled.flatten(0, 1).unsqueeze(1)
            maps = torch.ones_like(zero_filled)
            mask = mask.expand(shape[0], *mask.shape[1:])
            mask = mask.repeat_interleave(shape[1], dim=0)
        mask = mask.expand(len(zero_filled), *mask.shape[1:])
        parts = zip(zero_filled, mask, maps, strict=True)
        images = torch.stack([self._slice(*one) for one in parts])
        return images.view(shape[0], -1, *shape[2:])

    def _slice(self, zero_filled: Tensor, mask: Tensor, maps: Tensor) -> Tensor:
        """Reconstruct one image from the k-space `(coils, rows, cols)` of a slice."""
        scale = zero_filled.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        kspace = mask * fftc(zero_filled / scale)
        measured = mask.expand(zero_filled.shape)
        recon = import_module("sigpy.mri.app").L1WaveletRecon(
            kspace.numpy(),
            maps.numpy(),
            self.weight,
            weights=measured.numpy(),
            show_pbar=False,
            max_iter=ITERATIONS,
        )
        return scale * torch.as_tensor(recon.run())


def _maps(images: Tensor) -> Tensor:
    """Return the maps of the coils of a slice, everywhere: few columns calibrate them.

    What sigpy leaves out by itself, where its eigenvalues are below .95, is all of an
    image that is calibrated on eight columns.
    """
    options = {"calib_width": CENTER, "kernel_width": KERNEL, "crop": 0}
    kspace = fftc(images).numpy()
    calibration = import_module("sigpy.mri.app").EspiritCalib
    return torch.as_tensor(calibration(kspace, **options, show_pbar=False).run())


def chosen(maps: bool, data: Path, masks: Masks, folder: Path) -> Wavelet:
    """Return the method with the weight of the least squared error in validation."""

    def error(method: Wavelet) -> float:
        made = folder / f"{method.weight:g}"
        reconstruct(method, data, made, masks)
        return float(asdict(evaluate(data, made).summary.mean)["nmse"])

    return min((Wavelet(weight, maps) for weight in WEIGHTS), key=error)
