"""Time of a training step: `python -m benchmarks.time`.

Contenders take turns in an order that is drawn each time, so that whatever else the
machine does hits all alike; medians and the spread between quartiles are recorded.
Threads are fixed; set MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ as the Makefile
does, or the allocator is what is measured.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.contenders import plain, runners, step
from benchmarks.networks import (
    Case,
    ConvolutionalBlock,
    additive,
    algebraic,
    conjugated,
)
from benchmarks.peers import announce, versions
from benchmarks.record import write

# networks and state, depth, repetitions
CASES: list[tuple[str, Case, int, int]] = [
    ("paper's layer, 64 x 64", Case(algebraic, 64, (64, 64)), 32, 15),
    ("paper's layer, 64 x 64", Case(algebraic, 64, (64, 64)), 100, 5),
    ("paper's layer, 128 x 128", Case(algebraic, 64, (128, 128)), 8, 9),
    ("paper's layer, 16 x 48 x 48", Case(algebraic, 32, (16, 48, 48)), 8, 9),
    ("paper's layer, tiny", Case(algebraic, 16, (16, 16)), 32, 21),
    ("additive coupling, 64 x 64", Case(additive, 64, (64, 64)), 16, 25),
    ("additive coupling, tiny", Case(additive, 16, (16, 16)), 32, 21),
]
REFERENCE = "plain autograd"
PAPER = {
    "plain autograd, paper's form": conjugated,
    "the same, PyTorch's convolutions": partial(conjugated, block=ConvolutionalBlock),
}


def seconds(action: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    actions: dict[str, Callable[[], None]], repetitions: int
) -> dict[str, list[float]]:
    """Time actions in turn, after one turn to warm up.

    The order is drawn in every turn: what an action finds in the caches of the
    processor depends on the one before.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repetitions + 1):
        for name in random.Random(turn).sample([*actions], len(actions)):
            elapsed = seconds(actions[name])
            if turn:
                times[name].append(elapsed)
    return times


def actions_of(case: Case, depth: int, x: Tensor) -> dict[str, Callable[[], None]]:
    """Return a training step for each contender, on networks of equal size."""
    net = case.network(depth).to(x.device)
    actions: dict[str, Callable[[], None]]
    actions = {name: partial(step, run, x) for name, run in runners(net).items()}
    if case.maker is algebraic:
        for name, maker in PAPER.items():
            other = case._replace(maker=maker).network(depth).to(x.device)
            actions[name] = partial(step, partial(plain, other), x)
    return actions


def main() -> None:
    """Measure all cases."""
    announce()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, case, depth, repetitions in CASES:
        torch.manual_seed(0)
        times = measure(actions_of(case, depth, case.state().to(device)), repetitions)
        reference = statistics.median(times[REFERENCE])
        for contender, values in times.items():
            low, median, high = statistics.quantiles(values, n=4)
            row = {"case": name, "contender": contender, "depth": depth}
            row |= {"median_s": median, "quartiles_s": [low, high]}
            rows.append({**row, "ratio": median / reference})
            print(
                f"{name:28} {depth:4} layers  {contender:32} {median / reference:6.2f}",
                flush=True,
            )
    malloc = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    settings = {"threads": 1, "malloc": malloc, "reference": REFERENCE}
    write("time", settings | {"peers": versions()}, rows)


if __name__ == "__main__":
    main()
