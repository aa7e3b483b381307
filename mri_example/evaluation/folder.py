"""Whole folders: reconstructions compared with targets, volume by volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.data.opening import opened
from mri_example.errors import InputError
from mri_example.evaluation.condition import Condition, attribute_text
from mri_example.evaluation.failures import Failures
from mri_example.evaluation.pairing import paired
from mri_example.evaluation.result import Evaluation
from mri_example.metrics import Scores, score


def evaluate(
    targets: Path,
    reconstructions: Path,
    acquisition: str | None = None,
    acceleration: float | None = None,
    *,
    skip_failures: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Compare a folder of reconstructions with the targets, volume by volume.

    Every file of either folder counts, or is named as a failure or as filtered.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions with the same names.
        acquisition: Count only the volumes of this acquisition.
        acceleration: Count only the volumes of this acceleration, as their
            reconstruction, or else the file with the target, says it.
        skip_failures: Go on without the volumes that cannot be compared, and list them.
        progress: Show a progress bar.

    Returns:
        The scores.

    Raises:
        InputError: If a volume has no partner or no target, occurs twice or cannot be
            compared, unless failures are skipped; or if nothing is left to count.
    """
    names, unpaired = paired(targets, reconstructions)
    failures = Failures(unpaired, skip=skip_failures)
    conditions: dict[str, Condition] = {}
    for name in names:
        with failures.noted(name):
            conditions[name] = _condition(targets / name, reconstructions / name)
    if not conditions:
        failures.refuse()
    wanted = _wanted(conditions, acquisition, acceleration)
    volumes: dict[str, Scores] = {}
    bar = tqdm(wanted, desc="evaluate", unit="volume", disable=not progress)
    with bar as names:
        for name in names:
            with failures.noted(name):
                volumes[name] = _score(targets / name, reconstructions / name)
    if not volumes:
        failures.refuse()
    return Evaluation(
        volumes,
        {name: conditions[name] for name in volumes},
        failures,
        tuple(name for name in conditions if name not in wanted),
    )


def _condition(target: Path, reconstruction: Path) -> Condition:
    file = KSpaceFile.inspect(target)
    if file.target is None:
        file.target_volume()  # says so
    with opened(reconstruction) as found:
        return Condition.of(file.attributes, dict(found.attrs))


def _score(target: Path, reconstruction: Path) -> Scores:
    volume = KSpaceFile.inspect(target).target_volume()
    estimate = read_reconstruction(reconstruction)
    try:
        return score(volume, estimate)
    except InputError as error:
        raise InputError(f"{target.name} cannot be evaluated: {error}") from error


def _wanted(
    conditions: Mapping[str, Condition],
    acquisition: str | None,
    acceleration: float | None,
) -> list[str]:
    """Return the names of the volumes that were asked for."""
    asked = {"acquisition": acquisition, "acceleration": acceleration}
    names = list(conditions)
    for field, condition in asked.items():
        value = None if condition is None else attribute_text(condition)
        known = {name: getattr(conditions[name], field) for name in names}
        if value is not None and value not in known.values():
            raise InputError(
                f"{field} is {value!r}, but the files have "
                f"{', '.join(sorted(set(known.values()))) or 'none'}: name one of "
                f"these, or leave it out"
            )
        names = [name for name in names if value in (None, known[name])]
    return names
