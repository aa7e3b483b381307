"""Host time that the engine adds to a layer: `python -m benchmarks.overhead`.

On tensors so small that arithmetic hardly counts, a step of a chain of additive
couplings is compared with plain autograd, the one recomputation included: with
conditioners whose derivatives are known in closed form, and with the same of a class
that the library does not know. Contenders take turns; medians count.
The cost of the guard is that of a step of the paper's layer, with and without it.
"""

import statistics
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.networks import additive, algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import InvertibleSequential

CHANNELS = HIDDEN = SIZE = 16
DEPTH = 32
REPETITIONS = 60
PAIRS = {1: 120, 4: 40}  # of steps with and without a guard, by images


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
    """Return the share of the guard in steps of one image and of four."""
    shares = {images: _guard_share(images) for images in PAIRS}
    for images, (share, quartiles) in shares.items():
        print(
            f"the guard takes {share:.2%} of a step of the paper's layer (quartiles "
            f"{quartiles}), {images} of 64 x 64"
        )
    return {
        "guard_share": shares[1][0],
        "guard_quartiles": shares[1][1],
        "guard_share_of_four": shares[4][0],
        "guard_quartiles_of_four": shares[4][1],
        "guard_pairs": list(PAIRS.values()),
    }


def _guard_share(images: int) -> tuple[float, list[float]]:
    """Return the median share, and its quartiles: 32 layers, 64 channels, 64 x 64."""
    net = algebraic(64, 64, DEPTH)
    clear(net)
    x = torch.randn(images, 64, 64, 64)

    def step(guard: str | None) -> None:
        net.guard = guard
        net(x).square().mean().backward()

    # what comes second finds warmer caches: both come second as often
    turns = {"off": None, "on": "raise", "on too": "raise", "off too": None}
    steps = {name: partial(step, guard) for name, guard in turns.items()}
    times = measure(steps, PAIRS[images] // 2)
    off = statistics.median(times["off"] + times["off too"])
    on_off = zip(
        times["on"] + times["on too"], times["off"] + times["off too"], strict=True
    )
    quartiles = statistics.quantiles((a - b) / off for a, b in on_off)
    return quartiles[1], [round(q, 4) for q in quartiles[::2]]


if __name__ == "__main__":
    main()
