"""Keyword context: which module takes which name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn


def keywords_of(function: Callable[..., Any] | nn.Module) -> frozenset[str] | None:
    """Return the keyword arguments of a function of a state, after the state.

    Args:
        function: A function; of a module, its method `forward` counts.

    Returns:
        Their names, or `None` if it takes any.
    """
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = [*inspect.signature(called).parameters.values()][1:]
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
    """Refuse a keyword argument that no layer takes.

    Args:
        name: The class of the container.
        keywords: The names of the arguments.
        names: The names that its layers take, `None` for any.

    Raises:
        TypeError: If there is one.
    """
    unknown = [] if names is None else [k for k in keywords if k not in names]
    if unknown:
        known = f"they take {sorted(names or ())}" if names else "they take none"
        raise TypeError(
            f"no layer of this {name} takes the keyword {unknown[0]!r}: {known}; name "
            f"it in the signature of a layer's `forward`"
        )
