"""What is asked of the arguments of a constructor."""

from __future__ import annotations

from operator import index

from torch import nn


def check_count(name: str, value: object, least: int = 1) -> None:
    """Check a whole number.

    Args:
        name: What the argument is called.
        value: What was given.
        least: The smallest number it can be.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is too small.
    """
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}, but must be a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {value}, but must be at least {least}")


def check_module(name: str, value: object) -> None:
    """Check a network.

    Raises:
        TypeError: If it is no `nn.Module`.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name} is of type {type(value).__name__}, but must be an nn.Module: wrap "
            f"it in one, so that its parameters are found"
        )
