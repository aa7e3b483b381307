"""The table of the README quotes benchmarks/results/ and nothing else."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTENDERS = {
    "plain": "plain autograd",
    "checkpoint every layer": "checkpoint every layer",
    "MemCNN": "MemCNN",
    "invtorch": "invtorch, 8 anchors (default)",
}
PAPER, LARGE, VOLUMES = "paper's layer", [480, 320], [32, 480, 320]
# what a row begins with, its file, its rows there, and the key of the number
CASES = {
    ("GPU, 400 of the paper's layers", "memory"): (
        *("scale_cuda", {"space": LARGE, "couplings": 400}, "bytes"),
    ),
    ("GPU, 400 of the paper's layers", "time"): (
        *("scale_cuda", {"space": LARGE, "couplings": 400}, "seconds"),
    ),
    ("GPU, 80 of them in 3-D", "memory"): (
        *("scale_cuda", {"space": VOLUMES, "couplings": 80}, "bytes"),
    ),
    ("CPU, 100 of them", "memory"): (
        *("memory", {"network": PAPER, "depth": 100}, "bytes"),
    ),
    ("CPU, 100 of them", "time"): (
        *("time", {"case": f"{PAPER}, 64 x 64", "depth": 100}, "ratio"),
    ),
    ("CPU, additive couplings on tiny states", "time"): (
        *("time", {"case": "additive coupling, tiny"}, "ratio"),
    ),
    ("GPU, additive couplings on tiny states", "time"): (
        *("time_cuda", {"case": "additive coupling, tiny"}, "ratio"),
    ),
}


def table() -> dict[tuple[str, str], dict[str, str]]:
    """Return the cells of the table by row and contender."""
    (text,) = re.findall(r"^\| training step.*?(?=\n\n)", README, re.M | re.S)
    heading, _, *rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
    ]
    cells, name = {}, ""
    for row in rows:
        name = row[0] or name
        case = next((case for case, _ in CASES if name.startswith(case)), name)
        cells[case, row[1]] = dict(zip(heading[2:], row[2:], strict=True))
    return cells


def measured(case: tuple[str, str], contender: str) -> float | None:
    """Return a number of the results, or what a step would have taken."""
    file, which, key = CASES[case]
    path = ROOT / f"benchmarks/results/{file}.json"
    rows = [
        row
        for row in json.loads(path.read_text())["rows"]
        if which.items() <= row.items() and row["contender"] == contender
    ]
    if not rows:
        return None
    (row,) = rows
    return row[key] if row.get(key) is not None else row["expected"]


@pytest.mark.parametrize("case", sorted(CASES), ids=", ".join)
def test_a_row_quotes_the_results(case) -> None:
    unit = measured(case, "plain autograd") if CASES[case][2] == "seconds" else 1
    for name, contender in CONTENDERS.items():
        cell, found = table()[case][name], measured(case, contender)
        if found is None:
            assert cell in ("not measured", ""), (name, cell)
            continue
        number = float(re.match(r"[\d.]+", cell)[0])
        factor = {"GB": 1e9, "MB": 1e6}.get([*cell.split(), ""][1].strip(","), unit)
        digits = len(cell.split()[0].partition(".")[2])
        assert number == round(found / factor, digits), (name, cell, found / factor)


def test_every_row_is_checked() -> None:
    assert table().keys() == CASES.keys()


def test_the_memory_of_pure_inversion() -> None:
    case = ("CPU, 100 of them", "memory")
    found = measured(case, "invtorch, anchors=0")
    assert f"`anchors=0` takes {found / 1e6:.0f} MB" in README
