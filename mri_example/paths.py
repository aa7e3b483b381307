"""Paths that a user gave: what is not there, and what is something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mri_example.errors import InputError


def check_file(path: Path, what: str = "file") -> None:
    """Refuse what is no file."""
    if path.is_dir():
        raise InputError(f"the {what} {path} is a folder: name a file in it")
    if not path.is_file():
        raise InputError(f"the {what} {path} does not exist: check the path")


def check_folder(path: Path) -> None:
    """Refuse what is no folder."""
    if path.is_file():
        raise InputError(f"the folder {path} is a file: name the folder it lies in")
    if not path.is_dir():
        raise InputError(f"the folder {path} does not exist: check the path")


def files_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files of a folder that end as they should, sorted by name.

    `B.H5` is one of them; what begins with a dot, as `._a.h5` of macOS, is none.

    Raises:
        InputError: If the folder is missing or holds none, or one of them is a folder.
    """
    check_folder(folder)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(tuple(suffixes)) and path.name[0] != "."
    )
    for path in found:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder with the name of a file: rename it, or name it "
                f"itself"
            )
    if not found:
        raise InputError(
            f"the folder {folder} holds no {', '.join(suffixes)} files: name the one "
            f"that does"
        )
    return found


def make_folder(path: Path) -> None:
    """Make a folder for output, unless it is there."""
    if path.exists() and not path.is_dir():
        raise InputError(f"output is {path}, which is a file: choose a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"output is {path}, which cannot be made ({error.strerror}): choose a "
            f"folder that you can write to"
        ) from error
