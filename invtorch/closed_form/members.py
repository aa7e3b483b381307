"""What the modules of a class are made of."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple, Self

from torch import nn

from invtorch import _torch


class Members(NamedTuple):
    """The parameters, submodules and methods of a module as its class made it.

    Attributes:
        parameters: The names of its parameters, also of parametrized ones.
        submodules: The names of its submodules, or `None` if they can be any.
        names: The names that no attribute of an instance may have.
    """

    parameters: frozenset[str]
    submodules: frozenset[str] | None
    names: frozenset[str]

    @classmethod
    def of(
        cls,
        kind: type[nn.Module],
        parameters: Iterable[str] = (),
        submodules: Iterable[str] | None = (),
    ) -> Self:
        """Return the members of a class, whose methods no attribute may replace."""
        own = frozenset(parameters)
        inner = None if submodules is None else frozenset(submodules)
        methods = {name for name in dir(kind) if callable(getattr(kind, name, None))}
        return cls(own, inner, own.union(methods, inner or ()))

    def fit(self, module: nn.Module) -> bool:
        """Return whether a module has these members, no buffers, and nothing else.

        A buffer or an attribute of an instance may be read in the place of a parameter
        or of a method.
        """
        parts = _torch.submodules_of(module)
        parameters: Set[str] = _torch.parameters_of(module).keys()
        submodules: Set[str] = parts.keys()
        if "parametrizations" in parts:
            lists = parts["parametrizations"]
            assert lists is not None
            parameters = parameters | _torch.submodules_of(lists).keys()
            submodules = submodules - {"parametrizations"}
        return (
            parameters == self.parameters
            and (self.submodules is None or submodules == self.submodules)
            and all(b is None for b in _torch.buffers_of(module).values())
            and self.names.isdisjoint(vars(module))
        )
