"""The tensors that ride along with a state: its context."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils._pytree import tree_map

Context: TypeAlias = tuple[Any, ...]


def tensors_in(context: Context) -> tuple[Tensor, ...]:
    """Return the tensors of a context, those in collections and dataclasses too."""
    if _flat(context):
        return context
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(keep, context)
    return tuple(found)


def copied(context: Context) -> Context:
    """Return a context of the same tensors that nobody else can fill or change."""
    return context if _flat(context) else mapped(lambda tensor: tensor, context)


def exchanged(context: Context, others: Mapping[int, Tensor]) -> Context:
    """Return a context in which other tensors stand for some, given by their `id`."""
    if _flat(context):
        return tuple([others.get(id(c), c) for c in context])
    return mapped(lambda tensor: others.get(id(tensor), tensor), context)


def mapped(function: Callable[[Tensor], Tensor], context: Context) -> Context:
    """Return a copy of a context with `function` applied to its tensors."""

    def at(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        twin = copy.copy(leaf)
        for field in dataclasses.fields(leaf):
            value = tree_map(at, getattr(leaf, field.name))
            object.__setattr__(twin, field.name, value)  # it may be frozen
        return twin

    found: Context = tree_map(at, context)
    return found


def _flat(context: Context) -> bool:
    return all(isinstance(c, Tensor) for c in context)
