"""Keyword context: which module takes which name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn


def keywords_of(
    function: Callable[..., Any] | nn.Module, given: int = 1
) -> frozenset[str] | None:
    """Return the keyword arguments that a function takes.

    Args:
        function: A function; of a module, its method `forward` counts.
        given: How many arguments are given by position, the state among them.

    Returns:
        Their names, or `None` if it takes any.
    """
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = [*inspect.signature(called).parameters.values()][given:]
    except ValueError:  # a function of an extension has no signature
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters if p.kind in by_name)


def all_keywords(names: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """Return the names that one of several modules takes, `None` for any."""
    known = [*names]
    if None in known:
        return None
    return frozenset(name for own in known if own is not None for name in own)


def taken(
    names: frozenset[str] | None, keywords: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the keyword arguments with these names; all of them for `None`."""
    if names is None:
        return keywords
    return {name: value for name, value in keywords.items() if name in names}


def check_keywords(
    name: str, keywords: Iterable[str], names: frozenset[str] | None
) -> None:
    """Refuse a keyword argument that nothing takes.

    Args:
        name: The class of the container or layer.
        keywords: The names of the arguments.
        names: The names that the modules in it take, `None` for any.

    Raises:
        TypeError: If there is one.
    """
    unknown = [] if names is None else [k for k in keywords if k not in names]
    if unknown:
        known = f"only {sorted(names)}" if names else "none"
        raise TypeError(
            f"no module of this {name} takes the keyword {unknown[0]!r}, {known}: name "
            f"it in the signature of the `forward` that needs it"
        )
