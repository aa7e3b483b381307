"""What stands in for sigpy, which need not be installed: its `poisson`, not as even."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np


def poisson(img_shape, accel, calib=(0, 0), dtype=complex, crop_corner=True, seed=0):
    """Draw points at random around a full center."""
    assert not crop_corner
    mask = np.zeros(img_shape, dtype)
    top, left = ((n - c) // 2 for n, c in zip(img_shape, calib, strict=True))
    mask[top : top + calib[0], left : left + calib[1]] = 1
    missing = round(mask.size / accel) - int(mask.sum())
    order = np.random.RandomState(seed).permutation(np.flatnonzero(mask == 0))
    mask.flat[order[:missing]] = 1
    return mask


def install(monkeypatch) -> None:
    """Let `import sigpy.mri` succeed."""
    for name in ("sigpy", "sigpy.mri"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.poisson = poisson
        monkeypatch.setitem(sys.modules, name, module)
