"""What `torch.compile` takes off a training step: `python -m benchmarks.compiled`.

Plain autograd and inversion, with and without the guard, each as it is and compiled in
one graph. Contenders take turns; medians count. The peak is that of one step above
network, input and gradients.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import step
from benchmarks.networks import Maker, additive, algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import InvertibleSequential
from invtorch.planning import measure_memory

# name: network, depth
CASES: dict[str, tuple[Maker, int]] = {
    "additive coupling, 64x64": (additive, 8),
    "paper's layer, 64x64": (algebraic, 4),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "plain autograd": {"memory": "store"},
    "invtorch, anchors=0": {"anchors": 0},
    "invtorch, anchors=0, guard=None": {"anchors": 0, "guard": None},
}
CHANNELS = HIDDEN = SIZE = 64
REPETITIONS = 15


def prepared(maker: Maker, depth: int, options: dict[str, Any]) -> InvertibleSequential:
    """Return a network of its own with these options."""
    torch.manual_seed(0)
    net = maker(CHANNELS, HIDDEN, depth)
    for name, value in options.items():
        setattr(net, name, value)
    clear(net)
    return net


def compiled(net: InvertibleSequential, x: Tensor) -> tuple[Callable[[], None], float]:
    """Return a compiled training step, and the seconds that compiling it took."""
    torch._dynamo.reset()
    run = partial(step, torch.compile(net, fullgraph=True), x)
    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


def main() -> None:
    """Measure all cases."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    rows = []
    for case, (maker, depth) in CASES.items():
        x = torch.randn(1, CHANNELS, SIZE, SIZE)
        actions: dict[str, Callable[[], None]] = {}
        took: dict[str, float] = {}
        for name, options in STRATEGIES.items():
            actions[name] = partial(step, prepared(maker, depth, options), x)
            compiling = compiled(prepared(maker, depth, options), x)
            actions[f"{name}, compiled"], took[f"{name}, compiled"] = compiling
        times = measure(actions, REPETITIONS)
        reference = statistics.median(times["plain autograd"])
        for name, values in times.items():
            median = statistics.median(values)
            peak = measure_memory(actions[name], device=device).peak
            row = {"case": case, "contender": name, "depth": depth, "median_s": median}
            row |= {"ratio": median / reference, "bytes": peak}
            rows.append({**row, "compiling_s": took.get(name)})
            print(
                f"{case:26} {name:42} {median / reference:5.2f} {peak / 1e6:6.1f} MB",
                flush=True,
            )
    settings = {"channels": CHANNELS, "hidden": HIDDEN, "size": SIZE, "batch": 1}
    write("compiled", settings | {"threads": 1, "repetitions": REPETITIONS}, rows)


if __name__ == "__main__":
    main()
