"""A few numbers by which a rebuilt state is compared with the one it should be."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from invtorch.functional import mix_channels, no_autocast

PROBES = 4


def fingerprint(state: tuple[Tensor, ...]) -> Tensor:
    r"""Return a few random projections of a state.

    For signs $s$ drawn at random, $\mathbb{E}\,(s^\top \delta)^2 = \lVert \delta
    \rVert^2$: the difference of two fingerprints estimates the distance of two states,
    wherever they differ. The signs are products of one sign an axis, so that they take
    no memory, and the channels are summed first, so that the state is read once.

    Args:
        state: The tensors, without a graph.

    Returns:
        The projections, shape `(PROBES,)`.
    """
    with no_autocast(state[0]):
        return _added([_project(t, i) for i, t in enumerate(map(_real, state))])


def size(state: tuple[Tensor, ...]) -> Tensor:
    """Return the Euclidean norm of a state, shape `(1,)`."""
    squares = [
        torch.linalg.vector_norm(t, dtype=_exact(t)).square() for t in map(_real, state)
    ]
    return _added(squares).sqrt().reshape(1)


def distance(one: list[float], other: list[float]) -> float:
    """Estimate the distance of two states from their fingerprints."""
    squares = [(p - q) ** 2 for p, q in zip(one, other, strict=True)]
    return float((sum(squares) / len(squares)) ** 0.5)


def _project(tensor: Tensor, place: int) -> Tensor:
    signs = [_signs(n, (place, i), tensor) for i, n in enumerate(tensor.shape)]
    left = mix_channels(signs[1][:1], tensor).squeeze(1).to(_exact(tensor))
    axes = [signs[0], *signs[2:]]
    left = left @ axes.pop().T.to(left.dtype)
    while axes:
        left = (left * axes.pop().T.to(left.dtype)).sum(-2)
    return left


def _added(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return torch.stack([p.to(first.device, torch.float64) for p in parts]).sum(0)


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    return tensor if tensor.ndim > 1 else tensor.reshape(1, -1)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _signs(count: int, axis: tuple[int, int], like: Tensor) -> Tensor:
    return _drawn_signs(count, axis, like.dtype, like.device)


@functools.lru_cache(maxsize=256)
def _drawn_signs(
    count: int, axis: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw signs and keep them for good, in memory that no allocator counts."""
    generator = torch.Generator().manual_seed(31 * axis[0] + axis[1])
    drawn = torch.randint(0, 2, (PROBES, max(count, 1)), generator=generator) * 2 - 1
    memory = bytearray(drawn.numel() * dtype.itemsize)
    signs = torch.frombuffer(memory, dtype=dtype).view(drawn.shape).copy_(drawn)
    return signs[:, :count].to(device)
