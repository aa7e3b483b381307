"""Which reconstruction belongs to which target, and what has no partner."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mri_example.data.files import volume_paths


def paired(targets: Path, reconstructions: Path) -> tuple[list[str], dict[str, str]]:
    """Match the files of two folders by their names.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions.

    Returns:
        The names in both, and what is wrong with the others: targets without a
        reconstruction, reconstructions without a target, and files of one name that
        differ in their endings only, so that a volume might count twice.

    Raises:
        InputError: If there are no targets.
    """
    wanted = [path.name for path in volume_paths(targets)]
    found: list[str] = []
    if reconstructions.is_dir() and any(reconstructions.iterdir()):
        found = [path.name for path in volume_paths(reconstructions)]
    failures = {
        **_missing(reconstructions, wanted, found),
        **_unexpected(targets, wanted, found),
        **_duplicates(targets, wanted),
        **_duplicates(reconstructions, found),
    }
    return [name for name in wanted if name not in failures], failures


def _missing(folder: Path, wanted: list[str], found: list[str]) -> dict[str, str]:
    missing = [name for name in wanted if name not in found]
    count = f"{len(missing)} missing of {len(wanted)}"
    return {
        name: f"{folder} lacks {name} ({count}): reconstruct all volumes first"
        for name in missing
    }


def _unexpected(folder: Path, wanted: list[str], found: list[str]) -> dict[str, str]:
    return {
        name: f"{folder} has no {name}, but there is a reconstruction of it: remove "
        f"that, or add the target"
        for name in found
        if name not in wanted
    }


def _duplicates(folder: Path, names: list[str]) -> dict[str, str]:
    stems = Counter(Path(name).stem for name in names)
    return {
        name: f"{folder} holds {name} with another ending too, so that one volume "
        f"might count twice: keep one of them"
        for name in names
        if stems[Path(name).stem] > 1
    }
