"""Sensitivity maps of the coils, from the fully sampled center of their k-space."""

from importlib import import_module
from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mri_example.errors import require
from mri_example.masks import encoded_axes
from mri_example.transforms import fftc, fitted, ifftc, root_sum_of_squares

Maps: TypeAlias = Literal["calibration", "espirit"]
FEWEST = {"calibration": 4, "espirit": 7}  # samples: a kernel of ESPIRiT has 6


def check_maps(method: Maps) -> None:
    """Make sure that maps can be computed here."""
    text = f"sensitivity is {method!r}, but can only be one of {', '.join(FEWEST)}"
    require(method in FEWEST, text)
    text = "sensitivity is 'espirit', but sigpy is not installed: `pip install sigpy`, "
    ready = method != "espirit" or find_spec("sigpy") is not None
    require(ready, f"{text}or choose 'calibration'")


@torch.no_grad()
def estimated_maps(zero_filled: Tensor, mask: Tensor, method: Maps) -> Tensor:
    r"""Return the map of each coil, $\sum_c |S_c|^2 = 1$.

    "calibration" divides the images of the central columns and rows, tapered by a Hann
    window, by their root-sum-of-squares: smooth, as sensitivities are.

    Args:
        zero_filled: Complex `(batch, coils, [slices,] rows, cols)`.
        mask: 1 where measured, `(batch, 1, *ones, cols)`.
        method: "calibration", or "espirit", which sigpy computes.

    Raises:
        InputError: If there is one coil, the mask tells slices apart, too few columns
            around the center are measured, or ESPIRiT finds no maps from them.

    References:
        Uecker et al., *ESPIRiT - an eigenvalue approach to autocalibrating parallel
        MRI*, 2014.
    """
    said = f"sensitivity is {method!r}, but the"
    text = f"{said} data have a single coil, which needs no maps: leave it null"
    require(zero_filled.shape[1] > 1, text)
    text = f"{said} masks tell slices apart, as in 3-D acquisitions, whose maps are not"
    require(encoded_axes(mask) == 2, f"{text} estimated: leave it null")
    kspace = fftc(zero_filled, 2)
    columns = mask.expand(len(kspace), *mask.shape[1:]).flatten(1, -2).amin(dim=1)
    widths = [_center(of_sample, method) for of_sample in columns]
    maps = _low_resolution if method == "calibration" else _espirit
    return torch.stack([maps(k, w) for k, w in zip(kspace, widths, strict=True)])


def _low_resolution(kspace: Tensor, width: int) -> Tensor:
    sizes, tapers = kspace.shape[-2:], []
    for kept in (min(width, size) for size in sizes):
        from_center = torch.arange(kept, device=kspace.device) - kept // 2
        tapers.append(torch.cos(torch.pi * from_center / (kept + 1)).square())
    window = fitted(torch.outer(*tapers), (sizes[0], sizes[1]))
    images = ifftc(kspace * window, 2)
    combined = root_sum_of_squares(images, dim=0)
    return images / torch.where(combined > 0, combined, 1)


def _espirit(kspace: Tensor, width: int) -> Tensor:
    """Compute the maps of each slice, in single precision on the CPU."""
    espirit = import_module("sigpy.mri.app").EspiritCalib
    options = {"calib_width": min(width, *kspace.shape[-2:]), "show_pbar": False}
    slices = kspace.flatten(1, -3) if kspace.ndim > 3 else kspace.unsqueeze(1)
    data = slices.cpu().to(torch.complex64).numpy()
    maps = [espirit(data[:, i], **options).run() for i in range(data.shape[1])]
    stacked = torch.stack([torch.as_tensor(one) for one in maps], dim=1)
    text = f"ESPIRiT finds no sensitivity anywhere in a slice, from {width} columns "
    text += "around the center: raise center_fractions, or choose 'calibration'"
    require(stacked.flatten(2).any(dim=-1).any(dim=0).all(), text)
    return stacked.to(kspace).view_as(kspace)


def _center(columns: Tensor, method: Maps) -> int:
    """Return how many columns around the center are measured without a gap."""
    half = len(columns) // 2
    left = int(columns[:half].flip(0).cumprod(0).sum())
    right = int(columns[half:].cumprod(0).sum())
    width = 2 * min(left, right)
    text = f"{width} columns around the center are measured, but sensitivity maps need "
    text += f"at least {FEWEST[method]}: raise center_fractions"
    require(width >= FEWEST[method], text)
    return width
