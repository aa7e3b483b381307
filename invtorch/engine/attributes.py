"""The attributes of modules at one moment, and how they are brought back."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeAlias

from torch import Tensor, nn

PLAIN = (int, float, complex, str, type(None))
PADDING = ("_modules", "_modules")  # a getter of two names or more returns a tuple
OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
Holder: TypeAlias = dict[str, Any]


class Row:
    """The names of the attributes of modules, and the way to read them all at once.

    The dictionaries that every module has are not among them: what stands in these is
    looked at elsewhere, and nobody exchanges them.

    Args:
        holders: The dictionaries that hold the attributes.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.names = [[n for n in own if n not in OF_EVERY_MODULE] for own in holders]
        self.getters = [operator.itemgetter(*PADDING, *n) for n in self.names]
        self.sizes = [*map(len, holders)]

    def read(self, holders: Sequence[Holder]) -> Iterator[Any]:
        """Return the values.

        Raises:
            KeyError: If a holder has other names by now.
        """
        if [*map(len, holders)] != self.sizes:
            raise KeyError
        return chain.from_iterable(map(operator.call, self.getters, holders))


class Attributes:
    """What modules hold at one moment.

    All of it is kept in one row of values, because it is looked at in every call, and
    nearly always to find that nothing has changed.

    Args:
        holders: The dictionaries that hold the attributes of the modules.
        row: Their names at an earlier moment.
    """

    def __init__(self, holders: Sequence[Holder], row: Row) -> None:
        self.holders = holders
        self.row = row
        try:
            self.values = [*row.read(holders)]
        except KeyError:
            self.row = Row(holders)
            self.values = [*self.row.read(holders)]

    def unchanged(self) -> bool:
        """Tell whether the modules hold the very same."""
        try:
            return all(map(operator.is_, self.row.read(self.holders), self.values))
        except KeyError:
            return False

    def tensors(self) -> list[tuple[Holder, str, Tensor]]:
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
        values = iter(self.values)
        found = []
        for holder, names in zip(self.holders, self.row.names, strict=True):
            own = dict(zip((*PADDING, *names), values, strict=False))
            found.append((holder, own))
        return found

    def take_back(self) -> None:
        """Let the modules hold what they held, and nothing else."""
        if self.unchanged():
            return
        for holder, own in self.each():
            holder.update(own)
            for name in holder.keys() - own.keys() - OF_EVERY_MODULE:
                del holder[name]


class Found:
    """What a call found in its modules, to be given back to them in a replay.

    Tensors and objects that the call itself exchanged are not: they may hold the graph
    of the pass before. Numbers, words and `None` are.

    Args:
        before: What the call found; the modules hold what it left there.
    """

    def __init__(self, before: Attributes) -> None:
        self.holders, self.row = before.holders, before.row
        self.all = before if before.unchanged() else None
        self.some: list[tuple[Holder, Holder]] = []
        if self.all is None:
            self.some = [(holder, _left(holder, own)) for holder, own in before.each()]

    def give_back(self) -> Attributes:
        """Let the modules hold it, and return what they held."""
        if self.all is not None and self.all.unchanged():
            return self.all
        present = Attributes(self.holders, self.row)
        for holder, own in self.some if self.all is None else self.all.each():
            holder.update(own)
        return present


def _left(holder: Holder, before: Holder) -> Holder:
    """Return the attributes that were left alone, and numbers, words and `None`."""
    return {
        name: value
        for name, value in before.items()
        if holder.get(name) is value or isinstance(value, PLAIN)
    }
