"""What is shown of long work: a bar in a terminal, elsewhere a line now and then."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

from tqdm import tqdm

from mri_example.errors import InputError

INTERVAL = 20.0  # seconds between lines
T = TypeVar("T")


class Lines:
    """Lines on standard error, at most every 20 seconds, with the seconds passed."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start the clock, as a command does."""
        self.start = self.printed = time.monotonic()

    def due(self) -> bool:
        """Say whether it is time for the next one."""
        return time.monotonic() - self.printed >= INTERVAL

    def say(self, text: str) -> None:
        """Print a line."""
        self.printed = time.monotonic()
        complain(f"{text}, {self.printed - self.start:.0f} s")


def say(text: str) -> None:
    """Print a line on standard output."""
    if error := _print(text, sys.stdout):
        text = f"standard output cannot be written ({error.strerror}): redirect"
        text += " it to another place, and run the same command again"
        raise InputError(text) from error


def complain(text: str) -> None:
    """Print a line on standard error, if that can be written."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> OSError | None:
    """Print a line at once, whatever the names in it."""
    try:
        stream.write(f"{text}\n".encode("utf-8", "backslashreplace").decode())
        stream.flush()
    except OSError as error:  # of a full disk, or a pipe that nobody reads
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # at the exit
        return error
    return None


LINES = Lines()  # of the whole program, so that loops in loops take turns


def shown(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """Go through items, and show how many of them are done."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, unit=unit, leave=False)
        return
    for done, item in enumerate(items):
        if LINES.due():
            LINES.say(f"{what}: {unit} {done + 1} of {len(items)}")
        yield item
