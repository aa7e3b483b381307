"""Host time that the engine adds to a layer: `python -m benchmarks.overhead`.

On tensors so small that arithmetic hardly counts, a step of a chain of additive
couplings is compared with plain autograd, the one recomputation included, and with the
engine whose standing checks are switched off. Contenders take turns; medians count.
The cost of the guard is that of a step of the paper's layer, with and without it.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.networks import additive, algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch.engine import frame
from invtorch.engine.environment import Environment
from invtorch.engine.snapshot import Snapshot
from invtorch.engine.tape import Tape

CHANNELS = HIDDEN = SIZE = 16
DEPTH = 32
REPETITIONS = 60
CHECKS: dict[tuple[Any, str], Callable[..., Any]] = {
    (frame, "check_intact"): lambda *_: None,
    (frame, "check_parts"): lambda *_: None,
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


def main() -> None:
    """Measure the three contenders."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = additive(CHANNELS, HIDDEN, DEPTH)
    net.anchors, net.guard = 0, None
    clear(net)
    x = torch.randn(1, CHANNELS, SIZE, SIZE)

    def step(memory: str) -> None:
        net.memory = memory
        net(x).square().mean().backward()

    def step_unchecked() -> None:
        with unchecked():
            step("invert")

    times = measure(
        {
            "plain autograd": lambda: step("store"),
            "invtorch": lambda: step("invert"),
            "invtorch without checks": step_unchecked,
        },
        REPETITIONS,
    )
    layer = {name: 1e3 * statistics.median(t) / DEPTH for name, t in times.items()}
    beyond = layer["invtorch"] - layer["plain autograd"]
    checks = layer["invtorch"] - layer["invtorch without checks"]
    rows = [{"contender": name, "ms_per_layer": ms} for name, ms in layer.items()]
    for name, ms in layer.items():
        print(f"{name:26} {ms:.3f} ms a layer")
    print(
        f"{'beyond plain autograd':26} {beyond:.3f} ms a layer, checks {checks:.3f} ms"
    )
    settings = {"network": "additive coupling, two 3x3 convolutions", "depth": DEPTH}
    settings |= {"channels": CHANNELS, "size": SIZE, "anchors": 0, "threads": 1}
    settings |= {"beyond_ms": beyond, "checks_ms": checks, "repetitions": REPETITIONS}
    settings |= {"guard_share": guard_share(), "guard_off_in_rows": True}
    print(
        f"the guard takes {settings['guard_share']:.2%} of a step of the paper's layer"
    )
    write("overhead", settings, rows)


def guard_share() -> float:
    """Return the share of the guard in a step: 32 layers, 64 channels, 64 x 64."""
    net = algebraic(64, 64, DEPTH)
    clear(net)
    x = torch.randn(1, 64, 64, 64)

    def step(guard: str | None) -> None:
        net.guard = guard
        net(x).square().mean().backward()

    times = measure({"off": lambda: step(None), "on": lambda: step("raise")}, 40)
    pairs = zip(times["off"], times["on"], strict=True)
    return statistics.median(on - off for off, on in pairs) / statistics.median(
        times["off"]
    )


if __name__ == "__main__":
    main()
