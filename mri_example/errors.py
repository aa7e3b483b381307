"""What a user of the pipeline can get wrong."""

from __future__ import annotations


class InputError(ValueError):
    """A file, an argument or a configuration that cannot be used.

    The message is one sentence that names it and the way out. The command line prints
    it without a traceback and exits with code 2.
    """


def require(right: object, otherwise: str) -> None:
    """Raise `InputError` unless what is required is right."""
    if not right:
        raise InputError(otherwise)
