"""Sensitivity maps of coils, estimated from the center of their k-space."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_example.errors import InputError
from mri_example.physics.espirit import TOOLS, installed

KERNEL = 6  # samples along each axis of the kernels of ESPIRiT, in both tools


def sensitivity_maps(
    kspace: Tensor, width: int = 24, tool: str | None = None
) -> Tensor:
    r"""Estimate what each coil sees, with ESPIRiT of sigpy or BART.

    Neither is needed for anything else, so they are not installed along. The maps are
    those of the largest eigenvalue, $\sum_c |S_c|^2 = 1$, and 0 where it is small:
    where there is no signal, and elsewhere too if the center is too narrow. Their phase
    is free at every pixel: that of the image estimated with them makes up for it.

    Args:
        kspace: Complex, `(coils, rows, cols)`, or `(coils, slices, rows, cols)` of a
            3-D acquisition.
        width: Samples in the center that the maps follow from, along each axis. They
            must all be measured.
        tool: `"sigpy"` or `"bart"`; `None` takes the one that is installed.

    Returns:
        Maps of the shape, type and device of the k-space, computed in single precision
        on the CPU.

    Raises:
        InputError: If k-space has another number of axes, the center is wider than an
            axis, narrower than a kernel or not fully sampled, or the tool is not
            installed.

    References:
        Uecker et al., *ESPIRiT - an eigenvalue approach to autocalibrating parallel
        MRI*, 2014.
    """
    _check_center(kspace, width)
    name = _chosen(tool)
    maps = TOOLS[name](kspace.detach().cpu().to(torch.complex64).numpy(), width)
    return torch.from_numpy(maps).to(kspace)


def _chosen(tool: str | None) -> str:
    wanted = list(TOOLS) if tool is None else [tool]
    if not set(wanted) <= set(TOOLS):
        raise InputError(f"tool is {tool!r}, but can only be {' or '.join(TOOLS)}")
    here = [name for name in wanted if name in installed()]
    if not here:
        raise InputError(
            f"sensitivity maps are estimated with {' or '.join(wanted)}, which is not "
            f"installed: `pip install sigpy` or `apt install bart`"
        )
    return here[0]


def _check_center(kspace: Tensor, width: int) -> None:
    space = kspace.shape[1:]
    if len(space) not in (2, 3) or not kspace.is_complex():
        raise InputError(
            f"kspace is {kspace.dtype} of shape {tuple(kspace.shape)}, but must be "
            f"complex (coils, rows, cols) or (coils, slices, rows, cols)"
        )
    if not KERNEL < width <= min(space):
        raise InputError(
            f"width is {width}, but must be above the {KERNEL} samples of a kernel and "
            f"at most the {min(space)} of the shortest axis of {tuple(kspace.shape)}"
        )
    middle = kspace
    for axis, size in enumerate(space, start=1):
        middle = middle.narrow(axis, size // 2 - width // 2, width)
    missing = int((middle == 0).all(dim=0).sum())
    if missing:
        raise InputError(
            f"width is {width}, but {missing} of the {width}**{len(space)} samples in "
            f"the center are not measured: choose it no wider than the fully sampled "
            f"center"
        )
