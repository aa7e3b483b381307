"""A training step at the size of the paper's networks: `python -m benchmarks.scale`.

The 2-D state of the paper, 64 x 480 x 320, at 10, 40 and 80 couplings, which the paper
counts as 50, 200 and 400 layers; a 3-D state that a CPU gets through; and a 3-D network
of 1,000 couplings that is trained for a few steps. On a GPU the 3-D state is that of
the paper, 64 x 32 x 480 x 320, the 2-D network also has 400 couplings, and a state four
times as large is tried by inversion. A contender that would need more memory than there
is is left out, by what it needed at fewer couplings, and the table says so.

Against depth, each row has a fresh process, except on a GPU, whose allocator is emptied
in between; memory is the peak of the first step above network, input and gradients,
time is that of the second step. Of the 1,000 couplings, memory is that of forward and
backward pass, and time is that of the whole step, in which the bytes are counted.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from benchmarks.contenders import runners, step
from benchmarks.networks import clear
from benchmarks.record import write
from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.planning import measure_memory

CHANNELS = 64
COUPLINGS = (5, 10, 40, 80)
DEEPER = (*COUPLINGS, 400)
LARGE, LARGE_COUPLINGS = (64, 640, 480), 10
HIDDEN = (64, 64, 128, 128, 256, 256, 128, 128, 64, 64)  # the fan of a step
STRIDES = (1, 1, 2, 2, 4, 4, 2, 2, 1, 1)
NAMES = (
    "plain autograd",
    "checkpoint every layer",
    "invtorch, 8 anchors (default)",
    "invtorch, anchors=0",
)
DEEP, DEEP_CHANNELS = 1000, 16
STEPS = 5
SPARE = 0.85  # of the memory, for a contender to be tried


def fan(channels: int, couplings: int, axes: int) -> InvertibleSequential:
    """Return a chain of the paper's layer; in 3-D no stride along the slices."""
    half = channels // 2
    return InvertibleSequential(
        *[
            OrthogonalCoupling(
                GatedResidualBlock(
                    half,
                    channels - half,
                    hidden=HIDDEN[i % len(HIDDEN)] * channels // CHANNELS,
                    stride=(1,) * (axes - 2) + (STRIDES[i % len(STRIDES)],) * 2,
                    dims=axes,
                ),
                channels=channels,
            )
            for i in range(couplings)
        ]
    )


def device() -> str:
    """Return where the steps are made."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def memory() -> int:
    """Return the bytes that the device has."""
    if device() == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(space: tuple[int, ...], couplings: int, name: str) -> dict[str, Any]:
    """Measure one contender: peak of a first step, seconds of a second one."""
    torch.manual_seed(0)
    net = fan(CHANNELS, couplings, len(space)).to(device())
    x = torch.randn(1, CHANNELS, *space, device=device())
    clear(net)
    make = partial(step, runners(net)[name], x)
    peak = measure_memory(make, device=device()).peak
    row = {"space": space, "couplings": couplings, "contender": name, "bytes": peak}
    return row | {"states": peak / x.nbytes, "seconds": timed(make)}


def afresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own, or with a GPU that holds nothing."""
    if device() == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return function(*arguments)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def against_depth(
    space: tuple[int, ...],
    depths: tuple[int, ...] = COUPLINGS,
    names: tuple[str, ...] = NAMES,
) -> list[dict[str, Any]]:
    """Measure contenders at all depths, as far as they fit."""
    rows = []
    for name in names:
        known: list[tuple[int, int]] = []
        for couplings in depths:
            needed = expected(known, couplings)
            case = f"{'x'.join(map(str, space)):12} {couplings:3} couplings  {name:30}"
            row = {"space": space, "couplings": couplings, "contender": name}
            if needed > SPARE * memory():
                rows.append(row | {"bytes": None, "expected": needed})
                print(f"{case} would need {needed / 1e9:.1f} GB", flush=True)
                continue
            try:
                rows.append(afresh(measure, space, couplings, name))
            except (torch.OutOfMemoryError, BrokenProcessPool):
                rows.append(row | {"bytes": None, "expected": None})
                print(f"{case} ran out of memory", flush=True)
                break
            known.append((couplings, rows[-1]["bytes"]))
            print(
                f"{case} {rows[-1]['bytes'] / 1e9:6.3f} GB  "
                f"{rows[-1]['seconds']:6.1f} s",
                flush=True,
            )
    return rows


def expected(known: list[tuple[int, int]], couplings: int) -> float:
    """Continue the line through the last two measurements."""
    if len(known) < 2:
        return 0 if not known else known[0][1] * couplings / known[0][0]
    (a, low), (b, high) = known[-2:]
    return high + (high - low) / (b - a) * (couplings - b)


def train_deep(space: tuple[int, ...], channels: int) -> list[dict[str, Any]]:
    """Train a 3-D network of 1,000 couplings to remove noise, for a few steps."""
    torch.manual_seed(0)
    net = fan(channels, DEEP, 3).to(device())
    clear(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    ramp = torch.linspace(-1, 1, space[-1], device=device())
    clean = ramp.expand(1, channels, *space).contiguous()
    noisy = clean + 0.3 * torch.randn_like(clean)
    losses: list[float] = []

    def differentiate() -> None:
        loss = nn.functional.mse_loss(net(noisy), clean)
        torch.autograd.backward(loss)
        losses.append(loss.item())

    rows = []
    for i in range(STEPS):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        peak = measure_memory(differentiate, device=device()).peak
        optimizer.step()
        seconds = time.perf_counter() - begin
        row = {"space": space, "couplings": DEEP, "step": i, "loss": losses[-1]}
        row |= {"seconds": seconds, "bytes": peak, "states": peak / clean.nbytes}
        rows.append(row)
        print(
            f"{DEEP} couplings, step {i}: loss {losses[-1]:.5f}, "
            f"{peak / 1e6:.1f} MB, {seconds:.1f} s",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure what fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small states")
    quick = parser.parse_args().quick
    whole = (32, 480, 320) if device() == "cuda" else (8, 96, 80)
    plane, volume = ((48, 32), (4, 16, 16)) if quick else ((480, 320), whole)
    deep = (4, 8, 8) if quick else (8, 32, 32)
    settings = {"channels": CHANNELS, "hidden": HIDDEN, "strides": STRIDES}
    settings |= {"batch": 1, "dtype": "float32", "deep": {"channels": DEEP_CHANNELS}}
    settings |= {"threads": torch.get_num_threads(), "memory": memory()}
    rows: list[dict[str, Any]] = []
    parts = [
        partial(against_depth, plane),
        partial(afresh, train_deep, deep, DEEP_CHANNELS),
        partial(against_depth, volume),
    ]
    if device() == "cuda":
        parts[0] = partial(against_depth, plane, DEEPER)
        parts.append(partial(against_depth, LARGE, (LARGE_COUPLINGS,), NAMES[-1:]))
    for measure_part in parts:
        rows += measure_part()
        if not quick:
            write("scale", settings, rows)


if __name__ == "__main__":
    main()
