"""Precision: the rounding of dtypes and devices, and whether autocast lowers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def is_differentiable(tensor: Tensor) -> bool:
    """Return whether a tensor can need a gradient: integers cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


def eps_of(dtype: torch.dtype) -> float:
    """Return the relative rounding of a dtype; integers have none."""
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Compute in the dtype of the operands, whatever autocast says."""
    device = x.device.type
    if autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def autocast_enabled(device: str) -> bool:
    """Return whether autocast is on for a type of device; some do not support it."""
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype of autocast for a type of device, or `None` if it is off."""
    return torch.get_autocast_dtype(device) if autocast_enabled(device) else None


def tf32_dtypes(parameters: Iterable[Tensor], device: torch.device) -> set[torch.dtype]:
    """Return the dtype whose rounding TF32 gives to products with parameters, if used.

    A GPU may round the factors of float32 to TF32, which has the mantissa of float16.
    PyTorch allows it to convolutions, whose weights have more than two axes, unless
    set otherwise, and to matrix products where set so.
    """
    if device.type != "cuda":
        return set()
    axes = [p.ndim for p in parameters if p.dtype in (torch.float32, torch.complex64)]
    convolutions, matrices = _tf32()
    least = 0 if matrices else 3 if convolutions else math.inf
    return {torch.float16} if any(n >= least for n in axes) else set()


def _tf32_allowed() -> tuple[bool, bool]:
    """Return whether convolutions, and matrix products, may round to TF32."""
    backends: Any = torch.backends
    kinds = backends.cudnn.conv, backends.cuda.matmul
    convolutions, matrices = (kind.fp32_precision == "tf32" for kind in kinds)
    return convolutions, matrices


# Dynamo cannot trace the reading of a backend's setting: it takes the answer for a
# constant, which recompilation does not watch.
_tf32: Callable[[], tuple[bool, bool]]
_tf32 = torch.compiler.assume_constant_result(_tf32_allowed)
