"""What a user of the pipeline can get wrong: an argument, a file, a path."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A file, an argument or a configuration that cannot be used.

    The message is one sentence that names it and the way out. The command line prints
    it without a traceback and exits with code 2.
    """


def require(right: object, otherwise: str) -> None:
    """Raise `InputError` unless what is required is right."""
    if not right:
        raise InputError(otherwise)


@contextmanager
def reworded(said: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise `InputError` instead of errors of some kinds.

    Their words replace the last `{}`: those before it are part of the name of a file.
    """
    try:
        yield
    except kinds as error:
        words = " ".join(str(error).split())
        raise InputError(words.join(said.rsplit("{}", 1))) from error


def check_file(path: Path, what: str = "file") -> None:
    """Refuse what is no file."""
    require(not path.is_dir(), f"the {what} {path} is a folder: name a file in it")
    require(path.is_file(), f"the {what} {path} does not exist: check the path")


def files_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files of a folder that end as they should, sorted by name.

    `B.H5` is one of them; what begins with a dot, as `._a.h5` of macOS, is none.

    Raises:
        InputError: If the folder is missing or holds none, or one of them is a folder.
    """
    name = f"the folder {folder}"
    require(not folder.is_file(), f"{name} is a file: name the folder it lies in")
    require(folder.is_dir(), f"{name} does not exist: check the path")
    ends, found = tuple(suffixes), sorted(folder.iterdir())
    found = [f for f in found if f.name.lower().endswith(ends) and f.name[0] != "."]
    for path in filter(Path.is_dir, found):
        text = "is a folder with the name of a file: rename it, or name it itself"
        raise InputError(f"{path} {text}")
    text = f"holds no {', '.join(suffixes)} files: name the one that does"
    require(found, f"{name} {text}")
    return found


def named_files(
    source: Path, suffixes: Sequence[str], name: Callable[[Path], str]
) -> dict[str, Path]:
    """Return a file, or those of a folder, by names of which no two may be one."""
    if not source.is_dir():
        check_file(source)
    files: dict[str, Path] = {}
    for file in files_of(source, suffixes) if source.is_dir() else [source]:
        other = files.setdefault(name(file), file)
        text = f"{other} and {file} would both be {name(file)}: rename one"
        require(other == file, text)
    return files
