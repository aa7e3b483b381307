"""The attributes of modules at one moment, and how they are brought back."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, TypeAlias

from torch import Tensor

PLAIN = (int, float, complex, str, type(None))
LEFT = object()  # stands for what is not given back
Holder: TypeAlias = dict[Any, Any]


class Attributes:
    """What modules hold at one moment.

    All of it is kept in one row of names and one of values, because it is looked at in
    every call, and nearly always to find that nothing has changed.

    Args:
        holders: The dictionaries that hold the attributes of the modules.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders
        self.sizes = [*map(len, holders)]
        self.filled = [*filter(None, holders)]
        self.names = [*chain.from_iterable(self.filled)]
        self.values = [*_values(self.filled)]

    def unchanged(self) -> bool:
        """Tell whether the modules hold the very same."""
        return (
            [*map(len, self.holders)] == self.sizes
            and [*chain.from_iterable(self.filled)] == self.names
            and all(map(operator.is_, _values(self.filled), self.values))
        )

    def tensors(self) -> list[tuple[Holder, Any, Tensor]]:
        """Return the tensors among them, each with its place."""
        if not any(issubclass(kind, Tensor) for kind in {*map(type, self.values)}):
            return []
        return [
            (holder, name, value)
            for holder, own in self.each()
            for name, value in own.items()
            if isinstance(value, Tensor)
        ]

    def each(self) -> list[tuple[Holder, Holder]]:
        """Return every holder, and what it held."""
        pairs = zip(self.names, self.values, strict=True)
        own = [dict(islice(pairs, size)) for size in self.sizes]
        return [*zip(self.holders, own, strict=True)]

    def take_back(self) -> None:
        """Let the modules hold what they held, and nothing else."""
        if self.unchanged():
            return
        for holder, own in self.each():
            _fill(holder, own)


class Found:
    """What a call found in its modules, to be given back to them in a replay.

    Objects that the call itself exchanged are not: they may hold the graph of the pass
    before. Numbers, words, `None`, tensors without a graph and hooks are.

    Args:
        before: What the call found; the modules hold what it left there.
        hooks: How many of the holders, from the last, hold hooks.
    """

    def __init__(self, before: Attributes, hooks: int) -> None:
        self.holders = before.holders
        self.all = before if before.unchanged() else None
        self.some: list[tuple[Holder, Holder]] = []
        if self.all is None:
            each = before.each()
            first = len(each) - hooks
            left = [(holder, _left(holder, own)) for holder, own in each[:first]]
            self.some = [*left, *each[first:]]

    def give_back(self) -> Attributes:
        """Let the modules hold it, and nothing new, and return what they held."""
        if self.all is not None and self.all.unchanged():
            return self.all
        present = Attributes(self.holders)
        for holder, own in self.some if self.all is None else self.all.each():
            there = [(k, v) for k, v in own.items() if v is not LEFT or k in holder]
            _fill(holder, {k: holder[k] if v is LEFT else v for k, v in there})
        return present


def _values(holders: Sequence[Holder]) -> chain[Any]:
    return chain.from_iterable(map(dict.values, holders))


def _left(holder: Holder, before: Holder) -> Holder:
    """Return what was left alone or holds no graph for sure; `LEFT` for others."""
    return {
        name: value if holder.get(name) is value or without_graph(value) else LEFT
        for name, value in before.items()
    }


def without_graph(value: object) -> bool:
    """Tell whether something surely holds no graph."""
    return isinstance(value, PLAIN) or (
        isinstance(value, Tensor) and not value.requires_grad
    )


def _fill(holder: Holder, own: Holder) -> None:
    """Let a dictionary hold this and nothing else, in this order."""
    for name in holder.keys() - own.keys():
        del holder[name]
    holder.update(own)
    if [*holder] != [*own]:
        holder.clear()
        holder.update(own)
