"""The mark of a state: a few numbers by which a rebuilt state is compared with it."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from invtorch.precision import is_differentiable, no_autocast

PROBES = 4  # projections of a tensor: more estimate better and take longer
ROWS = 32  # least number of rows of its matrix
WIDEST = 8192  # largest number of columns: it bounds the memory of the weights


def mark(state: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """Return fingerprint and size of a state, as numbers where they can be had at once.

    Numbers of Python, because what a pass keeps must not grow with its depth. On an
    accelerator to read them would wait for it: there they stay tensors.
    """
    return _read(fingerprint(state)), _read(size(state))


def projections(state: tuple[Tensor, ...]) -> Any:
    """Return the fingerprint of a state alone, in the same way."""
    return _read(fingerprint(state))


def fingerprint(state: tuple[Tensor, ...]) -> Tensor:
    r"""Return a few random projections of each tensor of a state.

    $$ f_i = a_i^\top X b, \qquad
       \mathbb{E}\,(f_i(X + \delta) - f_i(X))^2 = \lVert\delta\rVert^2 $$

    The elements of a tensor are the rows of a matrix $X$; elements that do not fill a
    row have weights of their own. The weights $a_i$, $b$ have random signs and unit
    variance. So the difference of two fingerprints estimates the distance of two
    tensors. A tensor is read once. Every element contributes, so that an error of a
    single element is detected, and so are NaN and Inf.

    Args:
        state: The tensors, without a graph.

    Returns:
        The projections, shape `(tensors, PROBES)`.
    """
    with no_autocast(state[0]):
        return _stacked([_project(_real(t), seed) for seed, t in enumerate(state)])


def size(state: tuple[Tensor, ...]) -> Tensor:
    """Return the Euclidean norm of each tensor of a state, shape `(tensors,)`.

    The size of integers is zero, because they must be rebuilt exactly.
    """
    return _stacked([_norm(tensor) for tensor in state])


def _read(values: Tensor) -> Any:
    return values.tolist() if values.device.type == "cpu" else values


def _project(tensor: Tensor, seed: int) -> Tensor:
    place = tensor.numel(), seed, _exact(tensor), tensor.device
    shape, row, probes, beyond = _weights(*place)
    if tensor.dtype != row.dtype:
        tensor = tensor.to(row.dtype)
    if beyond is None:
        # matrix times vector, since products of matrices may round to TF32
        return torch.mv(probes, torch.mv(tensor.reshape(shape), row))
    flat = tensor.reshape(-1)
    inside = row.numel() * probes.shape[1]
    projected = torch.mv(probes, torch.mv(flat[:inside].view(shape), row))
    return torch.addmv(projected, beyond, flat[inside:])


def _norm(tensor: Tensor) -> Tensor:
    if not is_differentiable(tensor):
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
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.is_floating_point() else tensor.double()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=64)
def _weights(
    count: int, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[int, int], Tensor, Tensor, Tensor | None]:
    """Draw the weights for `count` elements.

    They have random signs and unit variance. Their absolute values are between about
    0.75 and 1.25, so that a value that moved to another position is detected.

    Returns:
        The shape of the matrix, then the weights of a row, those of the rows for each
        probe, and those of the elements beyond the matrix, if there are any.
    """
    width = min(count // ROWS, WIDEST)
    rows = count // width if width else 0
    generator = torch.Generator("cpu").manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        options: dict[str, Any] = {"device": "cpu", "dtype": torch.float64}
        uniform = torch.rand(size, generator=generator, **options) - 0.5
        weights = (uniform.sign() * 0.75 + uniform) / math.sqrt(1 + 1 / 48)
        return _uncounted(weights.to(dtype)).to(device)

    rest = count - rows * width
    beyond = drawn(PROBES, rest) if rest else None
    return (rows, width), drawn(width), drawn(PROBES, rows), beyond


def _uncounted(tensor: Tensor) -> Tensor:
    """Copy a tensor into memory of Python, which memory measurements do not count.

    The weights stay in a cache, and must not count as memory of the first pass.
    """
    if not tensor.numel():
        return tensor
    memory = bytearray(tensor.nbytes)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
