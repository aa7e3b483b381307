"""Peak memory of a training step against depth: `python -m benchmarks.memory`.

Each contender has a fresh process for each network. Bytes are those of the profiler's
memory events on a CPU and of the caching allocator on CUDA, above what was allocated
before the step: network, input and gradients.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.contenders import runners, step
from benchmarks.networks import Case, additive, algebraic
from benchmarks.peers import announce, versions
from benchmarks.record import write
from invtorch.planning import measure_memory

CASES: dict[str, tuple[Case, tuple[int, ...]]] = {
    "paper's layer": (Case(algebraic, 64, (64, 64)), (8, 50, 100, 200, 400)),
    "paper's layer, 3-D": (Case(algebraic, 32, (16, 48, 48)), (4, 8, 16, 32)),
    "additive coupling": (Case(additive, 64, (64, 64)), (4, 16, 64)),
}


def peak(case: Case, depth: int, name: str) -> int:
    """Measure a contender on a network of a depth."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net, x = case.network(depth).to(device), case.state().to(device)
    make = partial(step, runners(net)[name], x)
    if device == "cuda":
        make()  # what libraries keep for themselves, they keep from here on
    return measure_memory(make, device=device).peak


def measure(case: str, name: str) -> list[dict[str, Any]]:
    """Measure a contender at all depths of a network."""
    measured, depths = CASES[case]
    sizes = {"channels": measured.channels, "space": measured.space}
    state = measured.state().nbytes
    rows = []
    for depth in depths:
        found = peak(measured, depth, name)
        row = {"network": case, **sizes, "contender": name, "depth": depth}
        rows.append({**row, "bytes": found, "states": found / state})
        print(f"{case:18} {depth:4} layers  {name:30}  {found / 1e6:8.1f} MB")
    return rows


def afresh(case: str, name: str) -> list[dict[str, Any]]:
    """Measure in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, name).result()


def main() -> None:
    """Measure all contenders at all depths."""
    announce()
    rows = []
    for case, (measured, _) in CASES.items():
        for name in runners(measured.network(2)):
            rows += afresh(case, name)
    settings = {
        "networks": {
            "paper's layer": "OrthogonalCoupling(GatedResidualBlock), strides 1 2 4 8",
            "additive coupling": "AdditiveCoupling, two 3x3 convolutions and a ReLU",
        },
        "hidden": "as many as channels",
        "batch": 1,
        "dtype": "float32",
        "peers": versions(),
    }
    write("memory", settings, rows)


if __name__ == "__main__":
    main()
