"""Compare zero-filled, l1-wavelet, U-Net, RIM and i-RIMs: `make reproduce`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks import record
from benchmarks.reproduce import wavelet
from benchmarks.reproduce.data import prepare
from benchmarks.reproduce.methods import (
    ACCELERATIONS,
    CLASSICAL,
    METHODS,
    NETWORKS,
    Protocol,
    masks_of,
    methods_of,
)
from benchmarks.reproduce.page import middle_slice, write_comparison
from benchmarks.reproduce.table import aligned, markdown, table
from mri_example import report
from mri_example.data.files import whole_file
from mri_example.data.simulate import Simulation
from mri_example.demo import UNTRAINED
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.progress import say
from mri_example.reconstruct import Method, reconstruct, zero_filled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One number of coils: its data, and the folder of all that is made of them."""

    output: Path
    coils: int
    protocol: Protocol
    source: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of this number of coils."""
        return self.output / f"{self.coils}_coils"

    @property
    def simulation(self) -> Simulation:
        """How the data are simulated."""
        return Simulation(size=self.protocol.size, coils=self.coils)

    @property
    def data(self) -> Path:
        """The data root."""
        return self.folder / "data"

    def part(self, name: str) -> Path:
        """Return the folder of one part of the data: train, val or test."""
        return self.data / f"{self.simulation.challenge}_{name}"

    def made(self, method: str, seed: int, acceleration: int) -> Path:
        """Return the folder of the reconstructions of the test head."""
        return self.folder / "reconstructions" / f"{method}_{seed}_{acceleration}x"

    def run(self, name: str, seed: int) -> list[Row]:
        """Train a method if it learns, and return its row for each acceleration."""
        prepare(self.data, self.simulation, self.source)
        method, costs = zero_filled, UNTRAINED
        if name in NETWORKS:
            method, costs = self._train(name, seed)
        rows = []
        for acceleration in ACCELERATIONS:
            named = {"coils": self.coils, "method": name, "seed": seed}
            if name in CLASSICAL[1:]:
                method = self._wavelet(name, acceleration)
                named |= {"weight": method.weight}
            scores = self._test(
                method, acceleration, self.made(name, seed, acceleration)
            )
            rows.append(named | {"acceleration": acceleration} | costs | scores)
        return rows

    def _train(self, name: str, seed: int) -> tuple[Method, dict[str, int]]:
        network = NETWORKS[name]
        training = network.training(self.coils, self.protocol, seed)
        task, slices = training.setting(self.data)
        batches = len(slices.training_slices(task.model)) // slices.batch_size
        training = network.training(self.coils, self.protocol, seed, batches)
        return training.run(self.data, self.folder / f"{name}_{seed}")

    def _wavelet(self, name: str, acceleration: int) -> wavelet.Wavelet:
        """Choose the weight on the validation head."""
        masks = masks_of(self.coils, self.protocol.size, (acceleration,))
        folder = self.folder / name / f"{acceleration}x"
        maps = name.startswith("ESPIRiT")
        return wavelet.chosen(maps, self.part("val"), masks, folder)

    def _test(self, method: Method, acceleration: int, made: Path) -> dict[str, float]:
        masks = masks_of(self.coils, self.protocol.size, (acceleration,))
        device = DEVICE if isinstance(method, torch.nn.Module) else "cpu"
        reconstruct(method, self.part("test"), made, masks, device=device)
        return asdict(evaluate(self.part("test"), made).summary.mean)


def reproduce(
    output: Path = Path("runs/reproduce"),
    methods: tuple[str, ...] = METHODS,
    coils: tuple[int, ...] = (1, 8),
    seeds: int = 3,
    steps: int = Protocol.steps,
    slices: int = Protocol.slices,
    size: int = Protocol.size,
    minutes: float = Protocol.minutes,
    all_steps: bool = Protocol.all_steps,
    data: Path | None = None,
) -> None:
    """Train methods alike on heads, and compare them on one that none has seen.

    All networks make the same number of steps of as many slices, so that the result
    does not depend on the load of the machine. A row is written as soon as it exists;
    what is there already is kept, and what was interrupted goes on. k-space is
    simulated, so the scores do not compare with those of the fastMRI leaderboard.

    Args:
        output: Folder for data, checkpoints, reconstructions, rows, pictures, page.
        methods: Which of the methods to compare; those that do not fit the number of
            coils are left out.
        coils: The numbers of coils to compare with; 1 is single-coil data.
        seeds: Trainings of each network, with the seeds 0, 1, ...
        steps: Steps of the optimizer in each training.
        slices: Slices of a step; the i-RIM 3D takes them as one slab.
        size: Rows and columns of the images.
        minutes: Time of each training, which ends it instead of the steps; 0 for none.
        all_steps: Average the loss of i-RIMs over all of their steps, as that of the
            RIM; else it is that of the last.
        data: A folder of NIfTI files: the last by name for the test, the one before it
            for validation, the others for training; without it the embedded heads.
    """
    protocol = Protocol(steps, slices, size, minutes, all_steps)
    _check(methods, coils, seeds, protocol)
    settings = {"data": str(data or "embedded heads"), **asdict(protocol)}
    rows = _kept(output / "rows.json", settings)
    comparisons = [Comparison(output, count, protocol, data) for count in coils]
    for one in comparisons:
        for name, seed in _trainings(methods, one.coils, seeds):
            if not any(_is(row, one.coils, name, seed) for row in rows):
                rows += one.run(name, seed)
                rows.sort(key=_order)
                _write(output / "rows.json", settings, rows)
    say(aligned(table(rows)))
    with whole_file(output / "table.md") as written:
        written.write_text(markdown(table(rows)) + "\n")
    say(f"page: {_page(output, comparisons, rows, settings)}")


def _check(
    methods: tuple[str, ...], coils: tuple[int, ...], seeds: int, protocol: Protocol
) -> None:
    if not methods or not {*methods} <= {*METHODS}:
        raise InputError(f"methods is {[*methods]}, but can only have {[*METHODS]}")
    numbers = (seeds, protocol.steps, protocol.slices)
    if min(numbers) < 1 or not 0 <= protocol.minutes < 1e6:
        raise InputError(
            f"seeds, steps and slices are {numbers} and minutes {protocol.minutes}, "
            f"but must be at least 1, and minutes not negative"
        )
    least = wavelet.CENTER * max(ACCELERATIONS)
    if protocol.size < least and max(coils) > 1:
        raise InputError(
            f"size is {protocol.size}, but maps of several coils need {least}: give "
            f"that, or coils [1]"
        )


def _trainings(
    methods: tuple[str, ...], coils: int, seeds: int
) -> Iterator[tuple[str, int]]:
    """Yield methods and seeds: all methods with the first seed, then the next."""
    for seed in range(seeds):
        for name in methods_of(coils):
            if name not in methods or (seed and name in CLASSICAL):
                continue
            if name in CLASSICAL[1:] and not wavelet.INSTALLED:
                say(f"{name} is left out: sigpy is not installed")
                continue
            yield name, seed


def _is(row: Mapping[str, Any], coils: int, method: str, seed: int) -> bool:
    return (row["coils"], row["method"], row["seed"]) == (coils, method, seed)


def _order(row: Mapping[str, Any]) -> tuple[int, ...]:
    place = METHODS.index(row["method"])
    return row["coils"], row["acceleration"], place, row["seed"]


def _kept(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Return the rows that are there, all of the same settings."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    for name, value in settings.items():
        if before["settings"].get(name) != value:
            raise InputError(
                f"{path} was written with {name} = {before['settings'].get(name)!r}, "
                f"not {value!r}: use that, or another output"
            )
    rows: list[Row] = before["rows"]
    return rows


def _write(path: Path, settings: Mapping[str, Any], rows: list[Row]) -> None:
    with whole_file(path) as written:
        written.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    record.write("reproduce", {**settings, "threads": torch.get_num_threads()}, rows)


def _page(
    output: Path,
    comparisons: list[Comparison],
    rows: list[Row],
    settings: Mapping[str, Any],
) -> Path:
    """Draw a slice of each number of coils and acceleration, and write the page."""
    slices, logs = [], {}
    for one, acceleration in itertools.product(comparisons, ACCELERATIONS):
        names = [n for n in METHODS if any(_is(row, one.coils, n, 0) for row in rows)]
        made = {name: one.made(name, 0, acceleration) for name in names}
        coils = f"{one.coils} coil{'s' if one.coils > 1 else ''}"
        shown = middle_slice(one.part("test"), made, f"{coils}, {acceleration}x")
        heading = f"unseen head, {shown.title} (simulated k-space)"
        drawn = report.compare(replace(shown, title=heading))
        report.save(drawn, output / f"{one.coils}_coils_{acceleration}x.png")
        slices.append(shown)
        trained = {f"{n}, {coils}": one.folder / f"{n}_0/log" for n in names}
        logs |= {name: log for name, log in trained.items() if log.is_dir()}
    return write_comparison(rows, slices, logs, settings, output / "report.html")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 2 if the input was at fault."""
    try:
        auto_cli(reproduce, args=arguments)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
