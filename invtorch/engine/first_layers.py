"""What the first layers of a pass leave as small as its input.

A rebuilt state may have no digit of it where a later layer adds something large. It
need not be rebuilt, because the input of a pass is kept: layers that only mix are
evaluated again, and entries that the first layers leave as they are, or only move, are
copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch._torch import unseen_by_modes
from invtorch.linalg import SquareMatrix
from invtorch.module import InvertibleModule
from invtorch.precision import is_differentiable
from invtorch.recording import Recording

MOST = 4  # states in which entries are replaced
PLAIN = (Tensor, nn.Parameter)

# Returns entries of a state, or a mask of them, as a layer moves them, with zeros where
# it changes them; `None` where it changes all.
Move: TypeAlias = Callable[[Tensor], Tensor | None]


def mixes(module: InvertibleModule) -> bool:
    """Return whether a layer has no network inside, and is evaluated at little cost."""
    inside = _torch.submodules_of(module)
    return all(
        name == "parametrizations" or isinstance(part, SquareMatrix)
        for name, part in inside.items()
    )


class LayerCall(Protocol):
    """What is known of a call: the layer, its direction, and who wrote it."""

    module: InvertibleModule
    way: str
    own_layer: bool


def moves_of(calls: Sequence[LayerCall]) -> list[Move]:
    """Return how each layer of these calls moves entries."""
    return [partial(_moved, call) for call in calls]


def _moved(call: LayerCall, entries: Tensor) -> Tensor | None:
    unchanged = call.module.unchanged
    if unchanged is None or call.own_layer:
        return None
    with torch.no_grad(), unseen_by_modes(), Recording(None):
        after = unchanged(entries, call.way)
    return after if isinstance(after, Tensor) else None


def last_states(state: Tensor, moves: Sequence[Move]) -> tuple[int, ...]:
    """Return the states whose entries of the input are changed by the next layer.

    Those below such a state have these entries from it, since the layers between only
    copy them. The input itself is not among them. On a device whose operations are
    queued they are the first few states, because to count entries would wait for it.

    Args:
        state: The input of the pass.
        moves: How each layer of the pass moves entries.
    """
    if state.device.type != "cpu":
        return tuple(range(1, MOST + 1))
    found: list[int] = []
    mask: Tensor | None = _all_of_a_sample(state)
    there = state[:1].numel()
    for index, move in enumerate(moves):
        mask = None if mask is None else move(mask)
        left = 0 if mask is None else int(mask.sum())
        if index and left < there:
            found.append(index)
        if not left or len(found) == MOST:
            break
        there = left
    return tuple(found)


def with_entries_of(start: Tensor, moves: Sequence[Move], state: Tensor) -> Tensor:
    """Return a rebuilt state with the entries of the input that are still in it.

    An entry that is off by more than half of the digits of its sample stays as it is:
    the guard judges it.

    Args:
        start: The input of the pass.
        moves: How each layer between the input and the state moves entries.
        state: The rebuilt state.
    """
    mask: Tensor | None = _all_of_a_sample(start)
    entries: Tensor | None = start.detach()
    for move in moves:
        if mask is None or entries is None:
            return state
        mask, entries = move(mask), move(entries)
    if mask is None or entries is None or _form(entries) != _form(state):
        return state
    half = math.sqrt(torch.finfo(state.dtype).eps)
    with torch.no_grad():
        size = torch.linalg.vector_norm(state.flatten(1), math.inf, dim=1)
        limit = half * size.view(-1, *[1] * (state.ndim - 1))
        near = _distance(entries, state) <= limit
        return torch.where(near.logical_and_(mask), entries, state)


def has_samples(start: Tensor) -> bool:
    """Return whether a state has samples of numbers that can be off by a rounding.

    Operations of subclasses of `Tensor` may do more than compute.
    """
    plain = type(start) in PLAIN and start.layout is torch.strided
    return plain and is_differentiable(start) and start.ndim > 1 and start.numel() > 0


def _all_of_a_sample(start: Tensor) -> Tensor:
    return torch.ones_like(start[:1], dtype=torch.bool)


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _distance(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference.abs() if a.is_complex() else difference.abs_()
