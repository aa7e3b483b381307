"""Volumes that cannot be evaluated: named, and skipped only if that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mri_example.errors import InputError


class Failures(dict[str, str]):
    """Why volumes cannot be evaluated, by their names.

    Args:
        found: Those that are known.
        skip: Go on without them.

    Raises:
        InputError: At the first of them, unless they are to be skipped.

    Examples:
        >>> failures = Failures({}, skip=True)
        >>> with failures.noted("a.h5"):
        ...     raise InputError("it is damaged")
        >>> failures
        {'a.h5': 'it is damaged'}
    """

    def __init__(self, found: Mapping[str, str], *, skip: bool) -> None:
        super().__init__(found)
        self.skip = skip
        if not skip:
            self.refuse()

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Note the error that ends the block, or pass it on."""
        try:
            yield
        except InputError as error:
            self[name] = str(error)
            if not self.skip:
                raise

    def refuse(self) -> None:
        """Raise the first failure, if there is one."""
        for reason in self.values():
            more = f"; {len(self)} volumes fail in all" if len(self) > 1 else ""
            raise InputError(f"{reason}{more}")
