"""ESPIRiT as other packages have it, under one signature."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mri_example.physics.bart import bart

Array: TypeAlias = NDArray[np.complex64]
Tool: TypeAlias = Callable[[Array, int], Array]


def with_sigpy(kspace: Array, width: int) -> Array:
    """Estimate maps with sigpy, from `(coils, *space)`."""
    app = import_module("sigpy.mri.app")
    maps = app.EspiritCalib(kspace, calib_width=width, show_pbar=False).run()
    return np.asarray(maps, dtype=np.complex64)


def with_bart(kspace: Array, width: int) -> Array:
    """Estimate maps with BART, from `(coils, *space)`."""
    space = kspace.shape[1:]
    volume = kspace.reshape(len(kspace), *(1,) * (3 - len(space)), *space)
    maps = bart(f"ecalib -m 1 -r {width}", volume.transpose(2, 3, 1, 0))
    by_coils = maps.reshape(*volume.transpose(2, 3, 1, 0).shape).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(by_coils).reshape(kspace.shape)


TOOLS: dict[str, Tool] = {"sigpy": with_sigpy, "bart": with_bart}


def installed() -> list[str]:
    """Return the names of the tools that can be used here, the preferred one first."""
    here = {
        "sigpy": find_spec("sigpy") is not None,
        "bart": shutil.which("bart") is not None,
    }
    return [name for name in TOOLS if here[name]]
