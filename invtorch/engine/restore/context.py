"""Find, copy and replace the tensors in a context, also inside collections."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from invtorch._torch import tree_leaves, tree_map
from invtorch.recording import Context

Tree = TypeVar("Tree")


def tensors_in(context: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a context, also those in collections and dataclasses."""
    if _flat(context):
        args: tuple[Tensor, ...] = context.args
        return args
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(keep, context)
    return tuple(tensors)


def objects_in(context: Context) -> list[Any]:
    """Return the leaves of a context that are not tensors."""
    if _flat(context):
        return []
    return [leaf for leaf in tree_leaves(context) if not isinstance(leaf, Tensor)]


def copy_context(context: Context) -> Context:
    """Copy the collections of a context, because the caller may change them."""
    return context if _flat(context) else map_tensors(lambda tensor: tensor, context)


def exchange_context(context: Context, others: Mapping[int, Tensor]) -> Context:
    """Return a context in which some tensors, found by `id`, are replaced."""
    if _flat(context):
        return Context(tuple([others.get(id(c), c) for c in context.args]))
    return map_tensors(lambda tensor: others.get(id(tensor), tensor), context)


def map_tensors(function: Callable[[Tensor], Tensor], context: Tree) -> Tree:
    """Return a copy of a context with `function` applied to its tensors."""
    mapped: Tree = tree_map(partial(_mapped, function), context)
    return mapped


# A function inside of `map_tensors` that calls itself would be a cycle of references,
# and hold the tensors until Python collects garbage.
def _mapped(function: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return function(leaf)
    if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
        return leaf
    copied = copy.copy(leaf)
    for field in dataclasses.fields(leaf):
        if not hasattr(leaf, field.name):  # it is not set
            continue
        value = tree_map(partial(_mapped, function), getattr(leaf, field.name))
        object.__setattr__(copied, field.name, value)  # it may be frozen
    return copied


def _flat(context: Any) -> bool:
    """Return whether a context has only positional tensors, as most have."""
    return (
        isinstance(context, Context)
        and not context.named
        and all(isinstance(c, Tensor) for c in context.args)
    )
