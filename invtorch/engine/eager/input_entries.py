"""Entries of the input that the first layers leave as they are, or only move.

A rebuilt state may have no digit of them where they are small and a later layer adds
something large. They need not be rebuilt, because the input of a pass is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from invtorch._torch import unseen_by_modes
from invtorch.module import InvertibleModule
from invtorch.precision import is_differentiable
from invtorch.recording import Recording

MOST = 4  # states in which entries are replaced
PLAIN = (Tensor, nn.Parameter)


class LayerCall(Protocol):
    """What is known of a call: the layer, its direction, and who wrote it."""

    module: InvertibleModule
    way: str
    own_layer: bool


def last_states(state: Tensor, calls: Sequence[LayerCall]) -> tuple[int, ...]:
    """Return the states whose entries of the input are changed by the next layer.

    Those below such a state have these entries from it, since the layers between only
    copy them. The input itself is not among them. On a device whose operations are
    queued they are the first few states, because to count entries would wait for it.

    Args:
        state: The input of the pass.
        calls: The calls of the pass.
    """
    if state.device.type != "cpu":
        return tuple(range(1, MOST + 1))
    found: list[int] = []
    mask: Tensor | None = torch.ones_like(state[:1], dtype=torch.bool)
    there = state[:1].numel()
    for index, call in enumerate(calls):
        mask = _after(mask, call)
        left = 0 if mask is None else int(mask.sum())
        if index and left < there:
            found.append(index)
        if not left or len(found) == MOST:
            break
        there = left
    return tuple(found)


def with_entries_of(start: Tensor, calls: Sequence[LayerCall], state: Tensor) -> Tensor:
    """Return a rebuilt state with the entries of the input that are still in it.

    An entry that is off by more than half of the digits of its sample stays as it is:
    the guard judges it.

    Args:
        start: The input of the pass.
        calls: The calls between the input and the state.
        state: The rebuilt state.
    """
    mask: Tensor | None = torch.ones_like(start[:1], dtype=torch.bool)
    entries: Tensor | None = start.detach()
    for call in calls:
        mask, entries = _after(mask, call), _after(entries, call)
    if mask is None or entries is None or _form(entries) != _form(state):
        return state
    half = math.sqrt(torch.finfo(state.dtype).eps)
    with torch.no_grad(), unseen_by_modes():
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


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _distance(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference.abs() if a.is_complex() else difference.abs_()


def _after(entries: Tensor | None, call: LayerCall) -> Tensor | None:
    """Return entries, or a mask, as a layer moves them, with zeros where it changes."""
    unchanged = call.module.unchanged
    if entries is None or unchanged is None or call.own_layer:
        return None
    with torch.no_grad(), unseen_by_modes(), Recording(None):
        after = unchanged(entries, call.way)
    return after if isinstance(after, Tensor) else None
