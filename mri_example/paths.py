"""Paths that a user gave: what is not there, and what is something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mri_example.errors import InputError


def check_file(path: Path, what: str = "file") -> None:
    """Refuse what is no file."""
    if path.is_dir():
        raise InputError(f"the {what} {path} is a folder: name a file in it")
    if not path.is_file():
        raise InputError(f"the {what} {path} does not exist: check the path")


def files_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files of a folder that end as they should, sorted by name.

    `B.H5` is one of them; what begins with a dot, as `._a.h5` of macOS, is none.

    Raises:
        InputError: If the folder is missing or holds none, or one of them is a folder.
    """
    if folder.is_file():
        raise InputError(f"the folder {folder} is a file: name the folder it lies in")
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist: check the path")
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


def distinct(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return files by their names, of which no two may be one."""
    files: dict[str, Path] = {}
    for name, file in named:
        other = files.setdefault(name, file)
        if other != file:
            raise InputError(f"{other} and {file} would both be {name}: rename one")
    return files


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
