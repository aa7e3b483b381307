"""Host time that the engine adds to a layer: `python -m benchmarks.overhead`.

On tensors so small that arithmetic hardly counts, a step of a chain of additive
couplings is compared with plain autograd, the one recomputation included: with
conditioners that differentiate themselves, with the same of a class that the library
does not know, and with these and the standing checks switched off. Contenders take
turns; medians count.
The cost of the guard is that of a step of the paper's layer, with and without it, and
the time spent inside of it, which varies less from step to step.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.networks import additive, algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import InvertibleSequential
from invtorch.engine import frame
from invtorch.engine.eager.snapshot import Snapshot
from invtorch.engine.eager.tape import Tape
from invtorch.engine.guard.guard import Guard
from invtorch.engine.restore.environment import Environment

CHANNELS = HIDDEN = SIZE = 16
DEPTH = 32
REPETITIONS = 60
PAIRS = 120
INSIDE = 20
CHECKS: dict[tuple[Any, str], Callable[..., Any]] = {
    (frame, "check_intact"): lambda *_: None,
    (frame, "check_parts"): lambda *_: None,
    (frame, "check_shapes"): lambda *_: None,
    (frame, "check_unwritten"): lambda *_: None,
    (frame, "check_closed"): lambda *_: None,
    (frame.Frame, "_check"): lambda *_: None,
    (frame.Frame, "_check_unmodified"): lambda *_: None,
    (Environment, "written"): lambda *_: None,
    (Environment, "overwritten"): lambda *_: None,
    (Tape, "_check_unbroken"): lambda *_: None,
    (Snapshot, "unchanged"): lambda *_: True,
}


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the standing checks off."""
    originals = {place: getattr(*place) for place in CHECKS}
    for (owner, name), nothing in CHECKS.items():
        setattr(owner, name, nothing)
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


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

    def step_unchecked() -> None:
        with unchecked():
            step(unknown, "invert")

    times = measure(
        {
            "plain autograd": lambda: step(net, "store"),
            "invtorch, known derivatives": lambda: step(net, "invert"),
            "invtorch": lambda: step(unknown, "invert"),
            "invtorch without checks": step_unchecked,
        },
        REPETITIONS,
    )
    took = {name: 1e3 * statistics.median(t) / DEPTH for name, t in times.items()}
    known = took["invtorch, known derivatives"] - took["plain autograd"]
    beyond = took["invtorch"] - took["plain autograd"]
    checks = took["invtorch"] - took["invtorch without checks"]
    rows = [{"contender": name, "ms_per_layer": ms} for name, ms in took.items()]
    for name, ms in took.items():
        print(f"{name:28} {ms:.3f} ms a layer")
    print(
        f"{'beyond plain autograd':28} {beyond:.3f} ms a layer, {known:.3f} ms with "
        f"known derivatives; the checks take {checks:.3f} ms"
    )
    settings = {"network": "additive coupling, two 3x3 convolutions", "depth": DEPTH}
    settings |= {"channels": CHANNELS, "size": SIZE, "anchors": 0, "threads": 1}
    settings |= {"beyond_ms": beyond, "checks_ms": checks, "known_ms": known}
    settings |= {"repetitions": REPETITIONS}
    settings |= {"guard_off_in_rows": True, **guard_share()}
    print(
        f"the guard takes {settings['guard_share']:.2%} of a step of the paper's layer "
        f"(quartiles {settings['guard_quartiles']}), "
        f"{settings['guard_inside']:.2%} by the time spent in it"
    )
    write("overhead", settings, rows)


def guard_share() -> dict[str, Any]:
    """Return the share of the guard in a step: 32 layers, 64 channels, 64 x 64."""
    net = algebraic(64, 64, DEPTH)
    clear(net)
    x = torch.randn(1, 64, 64, 64)

    def step(guard: str | None) -> None:
        net.guard = guard
        net(x).square().mean().backward()

    # what comes second finds warmer caches: both come second as often
    turns = {"off": None, "on": "raise", "on too": "raise", "off too": None}
    times = measure({k: partial(step, guard) for k, guard in turns.items()}, PAIRS // 2)
    off = statistics.median(times["off"] + times["off too"])
    on_off = zip(
        times["on"] + times["on too"], times["off"] + times["off too"], strict=True
    )
    quartiles = statistics.quantiles((a - b) / off for a, b in on_off)
    with timed(Guard, ("take", "compare", "speak")) as inside:
        for _ in range(INSIDE):
            step("raise")
    return {
        "guard_share": quartiles[1],
        "guard_quartiles": [round(q, 4) for q in quartiles[::2]],
        "guard_inside": sum(inside) / INSIDE / off,
        "guard_pairs": PAIRS,
    }


@contextmanager
def timed(owner: type, names: tuple[str, ...]) -> Iterator[list[float]]:
    """Collect the seconds that are spent in methods of a class."""
    spent: list[float] = []

    def watched(method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            start = time.perf_counter()
            method(*args)
            spent.append(time.perf_counter() - start)

        return call

    originals = {name: getattr(owner, name) for name in names}
    for name, original in originals.items():
        setattr(owner, name, watched(original))
    try:
        yield spent
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


if __name__ == "__main__":
    main()
