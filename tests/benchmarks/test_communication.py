"""What processes send and keep is what the page on communication says."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import communication
from benchmarks.communication import CASES, Size, measured, of_the_paper, on_paper, ring
from benchmarks.record import read

PAGE = Path(__file__).parents[2] / "docs/howto/communication.md"
HEAD = 512  # bytes, more than a message of gloo has beside its tensor
DEPTHS = (1, 3)


@pytest.fixture(scope="module")
def rows():
    """Return what two processes count, at the smallest size."""
    return measured(2, Size(channels=8, hidden=(8,), slab=2, side=8), DEPTHS)


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_counted_bytes_equal_the_formulas_of_the_page(rows) -> None:
    assert len(rows) == 2 * sum(case.on_cpus for case in CASES.values()) + 2
    for row in rows:
        assert row["tensors"] == row["paper"]["tensors"]
        kept = {k: v for k, v in row["kept"].items() if k != "activations"}
        assert kept == row["paper"]["kept"]
        if CASES[row["case"]].sharded:  # a layer at a time
            calls = {"all-gather": 2, "reduce-scatter": 1}
            assert row["calls"] == {k: n * row["couplings"] for k, n in calls.items()}


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_sockets_are_given_what_a_ring_sends(rows) -> None:
    """Gloo sends a reduce-scatter as an all-reduce: twice."""
    if not communication.IO.exists():
        pytest.skip("needs Linux")
    for row in rows:
        least = ring(row["tensors"], 2, reduce_scatter=2)
        messages = 4 * sum(row["calls"].values())
        assert least < row["written"] < least + HEAD * messages


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_activations_do_not_grow_with_depth(rows) -> None:
    few, many = (r["kept"]["activations"] for r in rows if r["case"] == "DDP")
    assert few == many


@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1),
    processes=st.integers(1, 9),
    name=st.sampled_from(sorted(CASES)),
)
def test_formulas_count_the_shards_of_pytorch(shapes, processes, name) -> None:
    parameters = [torch.zeros(shape) for shape in shapes]
    found = on_paper(parameters, CASES[name], processes)
    size = sum(p.nbytes for p in parameters)
    if not CASES[name].sharded:
        assert found["kept"]["parameters"] == found["kept"]["buckets"] == size
        return
    first = sum(p.chunk(processes)[0].nbytes for p in parameters)
    assert found["kept"]["parameters"] == first >= size / processes
    half = CASES[name].parameters.itemsize / 4
    assert found["tensors"]["all-gather"] == 2 * processes * first * half


@given(data=st.data(), processes=st.integers(1, 5))
def test_a_ring_sends_what_it_is_said_to_send(data, processes) -> None:
    """Each process has a part at first, or sums of parts at last."""
    part = data.draw(st.integers(1, 9))
    whole = part * processes
    passed = sum(part for _ in range(processes - 1))
    assert ring({"all-gather": whole}, processes) == passed
    assert ring({"reduce-scatter": whole}, processes) == passed
    assert ring({"all-reduce": whole}, processes) == 2 * passed


def test_the_tables_of_the_page_are_those_of_the_script() -> None:
    text = PAGE.read_text()
    lines = communication.tables(of_the_paper())
    assert len(lines) == len(CASES) + 3
    assert not [line for line in lines if line not in text]


def test_the_page_quotes_what_was_measured() -> None:
    """The bytes on paper and on sockets, of the deepest network."""
    text, rows = PAGE.read_text(), read("communication")["rows"]
    deepest = max(row.get("couplings", 0) for row in rows)
    found = [row for row in rows if row.get("couplings") == deepest]
    for name, case in CASES.items():
        mine = [row for row in found if row["case"] == name]
        assert len(mine) == len(communication.PROCESSES) * case.on_cpus
        numbers = (f"{row[key]:,}" for row in mine for key in ("sent", "written"))
        assert not mine or f"| {' | '.join([name, *numbers])} |" in text
    assert all(
        row["tensors"] == row["paper"]["tensors"] for row in rows if "paper" in row
    )


def test_the_network_of_the_tables_is_that_of_the_page() -> None:
    with torch.device("meta"):
        shapes = [p.shape for p in communication.IRIM3D().parameters()]
    count = sum(map(math.prod, shapes))
    assert f"{count:,} parameters" in PAGE.read_text()
