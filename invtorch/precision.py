"""Precision: the rounding errors of dtypes and devices, and the dtype of autocast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from invtorch._torch import constant_in_graphs


def is_differentiable(tensor: Tensor) -> bool:
    """Return whether a tensor can require a gradient; integers cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


def eps_of(dtype: torch.dtype) -> float:
    """Return the eps of a dtype; 0 for integers, which are not rounded."""
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast: computations are in the operands' dtype."""
    device = x.device.type
    if autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def autocast_enabled(device: str) -> bool:
    """Return whether autocast is enabled for a device type; some do not support it."""
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype of autocast for a device type, or `None` if it is disabled."""
    return torch.get_autocast_dtype(device) if autocast_enabled(device) else None


def tf32_dtypes(parameters: Iterable[Tensor], device: torch.device) -> set[torch.dtype]:
    """Return float16 if products with these parameters may use TF32, else nothing.

    TF32 is a mode in which a GPU rounds float32 factors to the mantissa of float16.
    By default, PyTorch permits it for convolutions, but not for matrix products. The
    weights of convolutions have more than two axes.
    """
    if device.type != "cuda":
        return set()
    axes = [p.ndim for p in parameters if p.dtype in (torch.float32, torch.complex64)]
    convolutions, matrices = _tf32()
    # the smallest number of axes of a weight whose products may use TF32
    least = 0 if matrices else 3 if convolutions else math.inf
    return {torch.float16} if any(n >= least for n in axes) else set()


def _tf32_allowed() -> tuple[bool, bool]:
    """Return whether convolutions, and matrix products, may use TF32."""
    backends: Any = torch.backends
    kinds = backends.cudnn.conv, backends.cuda.matmul
    convolutions, matrices = (kind.fp32_precision == "tf32" for kind in kinds)
    return convolutions, matrices


# Dynamo cannot trace that a backend's setting is read. It treats the result as a
# constant, and does not recompile if the setting changes.
_tf32 = constant_in_graphs(_tf32_allowed)


def as_kind(dtype: torch.dtype, tensor: Tensor) -> torch.dtype:
    """Return `dtype`, made complex for complex tensors; integers keep their dtype."""
    if not is_differentiable(tensor):
        return tensor.dtype
    return dtype.to_complex() if tensor.is_complex() else dtype


def dtypes_as(state: Sequence[Tensor], like: Sequence[Tensor]) -> list[torch.dtype]:
    """Return the dtypes of another state, for a state that may have more tensors.

    They are those of `like`, tensor by tensor. If the numbers of tensors differ, all
    have the first floating dtype of `like`.
    """
    if len(state) == len(like):
        return [t.dtype for t in like]
    floating = (t.dtype for t in like if is_differentiable(t))
    first = next(floating, torch.get_default_dtype())
    return [as_kind(first.to_real(), t) for t in state]
