"""Host time that the engine adds to a layer: `python -m benchmarks.overhead`.

On tensors so small that arithmetic hardly counts, a step of a chain of additive
couplings is compared with plain autograd, the one recomputation included: with
conditioners whose derivatives are known in closed form, and with the same of a class
that the library does not know. Contenders take turns; medians count.
The cost of the guard is that of a step of the paper's layer: the time inside of the
guard, which is exact, and steps with and without it in turn, whose difference also
counts what the guard removes from the caches of the processor.
"""

import functools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import additive, algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import InvertibleSequential
from invtorch.engine.guard.guard import Guard

CHANNELS = HIDDEN = SIZE = 16
DEPTH = 32
REPETITIONS = 60
INSIDE = {(1, 64): 20, (4, 64): 10, (1, 128): 10, (1, 320): 3}  # steps
PAIRS = {(1, 64): 80, (4, 64): 30}  # of steps with and without a guard


class Unknown(nn.Sequential):
    """A chain that the library does not know to be one."""


def main() -> None:
    """Measure all contenders."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, unknown = (additive(CHANNELS, HIDDEN, DEPTH) for _ in range(2))
    for layer in unknown:
        layer.conditioner = Unknown(*layer.conditioner)
    for one in net, unknown:
        one.anchors, one.guard = 0, None
        clear(one)
    x = torch.randn(1, CHANNELS, SIZE, SIZE)

    def step(net: InvertibleSequential, memory: str) -> None:
        net.memory = memory
        net(x).square().mean().backward()

    times = measure(
        {
            "plain autograd": lambda: step(net, "store"),
            "invtorch, closed form": lambda: step(net, "invert"),
            "invtorch, autograd": lambda: step(unknown, "invert"),
        },
        REPETITIONS,
    )
    took = {name: 1e3 * statistics.median(t) / DEPTH for name, t in times.items()}
    closed = took["invtorch, closed form"] - took["plain autograd"]
    beyond = took["invtorch, autograd"] - took["plain autograd"]
    rows = [{"contender": name, "ms_per_layer": ms} for name, ms in took.items()]
    for name, ms in took.items():
        print(f"{name:28} {ms:.3f} ms a layer")
    print(
        f"{'beyond plain autograd':28} {beyond:.3f} ms a layer, {closed:.3f} ms in "
        f"closed form"
    )
    settings = {"network": "additive coupling, two 3x3 convolutions", "depth": DEPTH}
    settings |= {"channels": CHANNELS, "size": SIZE, "anchors": 0, "threads": 1}
    settings |= {"beyond_ms": beyond, "closed_form_ms": closed}
    settings |= {"repetitions": REPETITIONS}
    settings |= {"guard_off_in_rows": True, **guard_share()}
    write("overhead", settings, rows)


def guard_share() -> dict[str, Any]:
    """Return the shares of the guard in steps, by images and size."""
    inside: dict[str, float] = {}
    beside: dict[str, list[float]] = {}
    for (images, size), steps in INSIDE.items():
        named = f"{images} of {size} x {size}"
        inside[named] = _inside_share(images, size, steps)
        print(f"{named}: {inside[named]:.2%} of a step is inside of the guard")
    for (images, size), pairs in PAIRS.items():
        named = f"{images} of {size} x {size}"
        beside[named] = _quartiles(images, size, pairs)
        shown = ", ".join(f"{q:.1%}" for q in beside[named])
        print(f"{named}: beside steps without a guard {shown} (quartiles)")
    return {
        "guard_inside": inside,
        "guard_steps": [*INSIDE.values()],
        "guard_beside_quartiles": beside,
        "guard_pairs": [*PAIRS.values()],
    }


def _papers_layers(images: int, size: int) -> tuple[InvertibleSequential, Tensor]:
    """Return 32 layers with 64 channels, and an input."""
    net = algebraic(64, 64, DEPTH)
    clear(net)
    return net, torch.randn(images, 64, size, size)


def _inside_share(images: int, size: int, steps: int) -> float:
    """Return the median share of a step that is spent inside of the guard."""
    net, x = _papers_layers(images, size)
    shares = []
    for _ in range(steps + 2):  # in the first two, buffers are allocated
        with _timed(Guard, ("begin", "take", "end", "compare", "evaluate")) as spent:
            start = time.perf_counter()
            net(x).square().mean().backward()
            shares.append(sum(spent) / (time.perf_counter() - start))
    return statistics.median(shares[2:])


@contextmanager
def _timed(kind: type, names: tuple[str, ...]) -> Iterator[list[float]]:
    """Append the seconds of every call of these methods."""
    spent: list[float] = []
    originals = {name: getattr(kind, name) for name in names}
    for name, method in originals.items():

        def timed(*args: Any, method: Any = method, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                spent.append(time.perf_counter() - start)

        setattr(kind, name, functools.wraps(method)(timed))
    try:
        yield spent
    finally:
        for name, method in originals.items():
            setattr(kind, name, method)


def _quartiles(images: int, size: int, pairs: int) -> list[float]:
    """Return the quartiles of what the guard adds to a step, in units of the step."""
    net, x = _papers_layers(images, size)

    def step(guard: str | None) -> None:
        net.guard = guard
        net(x).square().mean().backward()

    times = measure({"off": partial(step, None), "on": partial(step, "raise")}, pairs)
    off = statistics.median(times["off"])
    on_off = zip(times["on"], times["off"], strict=True)
    shares = statistics.quantiles((a - b) / off for a, b in on_off)
    return [round(q, 4) for q in shares]


if __name__ == "__main__":
    main()
