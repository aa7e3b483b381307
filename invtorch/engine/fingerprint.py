"""A few numbers by which a rebuilt state is compared with the one it should be."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from invtorch.functional import no_autocast

PROBES = 2


def fingerprint(state: tuple[Tensor, ...]) -> Tensor:
    r"""Return a few random projections of each tensor of a state.

    $$ f = a^\top X b, \qquad \mathbb{E}\,(a^\top \delta b)^2 = \lVert\delta\rVert^2 $$

    for weights $a$, $b$ of random sign and unit variance, the tensor $X$ being seen as
    a matrix: the difference of two fingerprints estimates the distance of two tensors.
    Every element counts, so that an error of a single one is seen, and NaN and Inf are.
    Two projections sum over the columns first, two over the rows, which reads the state
    twice.

    Args:
        state: The tensors, without a graph.

    Returns:
        The projections, shape `(tensors, 2 * PROBES)`.
    """
    with no_autocast(state[0]):
        return _stacked([_project(_real(t), seed) for seed, t in enumerate(state)])


def size(state: tuple[Tensor, ...]) -> Tensor:
    """Return the Euclidean norm of each tensor of a state, shape `(tensors,)`.

    That of integers is zero: there is no size by which they may be off.
    """
    return _stacked([_norm(tensor) for tensor in state])


def distance(one: list[float], other: list[float]) -> float:
    """Estimate the distance of two tensors from their projections."""
    squares = [(p - q) ** 2 for p, q in zip(one, other, strict=True)]
    return float((sum(squares) / len(squares)) ** 0.5)


def _project(tensor: Tensor, seed: int) -> Tensor:
    half = (tensor.ndim + 1) // 2
    shape = math.prod(tensor.shape[:half]), math.prod(tensor.shape[half:])
    matrix = tensor.reshape(shape).to(_exact(tensor))
    rows, columns = (
        _weights(count, 2 * seed + axis, matrix.dtype, matrix.device)
        for axis, count in enumerate(shape)
    )
    # matrix times vector, since products of matrices may round to TF32
    along_columns = torch.mv(rows[1:], torch.mv(matrix, columns[0]))
    along_rows = torch.mv(columns[1:], torch.mv(matrix.T, rows[0]))
    return torch.cat([along_columns, along_rows])


def _norm(tensor: Tensor) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.new_zeros((), dtype=torch.float64)
    real = _real(tensor)
    norm: Tensor = torch.linalg.vector_norm(real, dtype=_exact(real))
    return norm


def _stacked(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    return torch.stack([p.to(parts[0].device, torch.float64) for p in parts])


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor if tensor.is_floating_point() else tensor.double()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=64)
def _weights(count: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw weights: a row to sum with first, then one for each probe of this axis.

    Their sizes vary by a quarter, so that a value which moved elsewhere is seen.
    """
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float64}
    options["generator"] = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.rand(1 + PROBES, count, **options) - 0.5
    weights = (drawn.sign() * 0.75 + drawn) / math.sqrt(1 + 1 / 48)
    return _uncounted(weights.to(dtype)).to(device)


def _uncounted(tensor: Tensor) -> Tensor:
    """Copy a tensor that is kept for good into memory that no allocator counts."""
    if not tensor.numel():
        return tensor
    memory = bytearray(tensor.nbytes)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
