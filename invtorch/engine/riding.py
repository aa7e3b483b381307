"""The tensors that ride along with a state: its context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def tensors_in(context: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return the tensors of a context, those in lists and dictionaries too."""
    if _flat(context):
        return context
    return tuple(c for c in tree_leaves(context) if isinstance(c, Tensor))


def exchanged(
    context: tuple[Any, ...], others: Mapping[Tensor, Tensor]
) -> Iterable[Any]:
    """Return a context in which other tensors stand for some."""
    if _flat(context):
        return [others.get(c, c) for c in context]
    found: Iterable[Any] = tree_map_only(Tensor, lambda c: others.get(c, c), context)
    return found


def _flat(context: tuple[Any, ...]) -> bool:
    return all(isinstance(c, Tensor) for c in context)
