"""A few numbers by which a rebuilt state is compared with the one it should be."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from invtorch.functional import no_autocast

PROBES = 4
SAMPLE = 512


def fingerprint(state: tuple[Tensor, ...]) -> Tensor:
    r"""Return a few random projections of a state.

    For signs $s$ drawn at random, $\mathbb{E}\,(s^\top \delta)^2 = \lVert \delta
    \rVert^2$: the difference of two fingerprints estimates the distance of two states.
    Of a large tensor the elements at 512 positions are taken, drawn once, which is why
    it costs little whatever the size.

    Args:
        state: The tensors, without a graph.

    Returns:
        The projections, shape `(PROBES,)`.
    """
    with no_autocast(state[0]):
        parts = [_project(_real(t), seed) for seed, t in enumerate(state)]
    return parts[0] if len(parts) == 1 else _stacked(parts).sum(0)


def size(state: tuple[Tensor, ...]) -> Tensor:
    """Return the Euclidean norm of a state, shape `()`."""
    norms = [_norm(tensor) for tensor in map(_real, state)]
    return norms[0] if len(norms) == 1 else _norm(_stacked(norms))


def distance(one: list[float], other: list[float]) -> float:
    """Estimate the distance of two states from their fingerprints."""
    squares = [(p - q) ** 2 for p, q in zip(one, other, strict=True)]
    return float((sum(squares) / len(squares)) ** 0.5)


def _project(tensor: Tensor, seed: int) -> Tensor:
    elements = tensor.numel()
    if elements > SAMPLE:
        values = torch.take(tensor, _positions(elements, tensor.device))
    else:
        values = tensor.flatten()
    values = values.to(_exact(tensor))
    signs = _signs(len(values), elements, seed, values.dtype, values.device)
    return torch.mv(signs, values)


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=_exact(tensor))
    return norm


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.stack([p.to(parts[0].device, torch.float64) for p in parts])


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor if tensor.is_floating_point() else tensor.double()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=64)
def _positions(elements: int, device: torch.device) -> Tensor:
    """Draw positions in a tensor of so many elements."""
    generator = torch.Generator().manual_seed(elements)
    drawn = torch.randint(0, elements, (SAMPLE,), generator=generator)
    return _uncounted(drawn).to(device)


@functools.lru_cache(maxsize=64)
def _signs(
    count: int, elements: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw signs, as large as makes up for the elements that were not taken."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (PROBES, count), generator=generator) * 2 - 1
    weight = math.sqrt(elements / max(count, 1))
    return _uncounted((signs * weight).to(dtype)).to(device)


def _uncounted(tensor: Tensor) -> Tensor:
    """Copy a tensor that is kept for good into memory that no allocator counts."""
    if not tensor.numel():
        return tensor
    memory = bytearray(tensor.nbytes)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
