"""Planners of activation memory at equal bytes: `python -m benchmarks.budget_peers`.

`memory="auto"`, the planner of ckptplan, and `activation_memory_budget` of
`torch.compile` train one chain of the paper's layers. For each budget, every planner
gets the largest setting with which the measured peak of a step is at most that of
`memory="auto"`. Then all take turns, and the medians of ratios are recorded. Beside
`torch.compile`, the container is compiled too.

ckptplan measures bytes on CUDA only. On a CPU its error is recorded, and its planner is
given the bytes that `measure_memory` finds for each layer.
"""

import copy
import dataclasses
import importlib.metadata
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx

from benchmarks.contenders import step
from benchmarks.networks import algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import InvertibleSequential
from invtorch.planning import measure_memory

CHANNELS, SIZE, DEPTH = 32, 32, 8
OURS, COMPILED = "memory='auto'", "memory='auto', compiled"
FRACTIONS = (1.0, 0.7, 0.5, 0.3)  # of the peak of plain autograd
VALUES = (1.0, 0.6, 0.4, 0.2, 0.0)  # of `activation_memory_budget`
REPETITIONS = 60
PLAIN = 10**12
SLACK = 1.01  # peaks of two steps differ by a few small tensors

Step = Callable[[], None]


def peak(run: Step) -> int:
    """Return the peak of a step, after one that warms up."""
    run()
    return measure_memory(run).peak


def network() -> InvertibleSequential:
    """Return the network, the same each time."""
    torch.manual_seed(0)
    net = algebraic(CHANNELS, CHANNELS, DEPTH)
    net.anchors, net.memory = 0, "store"
    clear(net)
    return net


def ours(x: Tensor, budget: int, compiled: bool = False) -> Step:
    """Return a step with `memory="auto"`."""
    net = network()
    net.memory, net.budget = "auto", budget
    return partial(step, torch.compile(net) if compiled else net, x)


# --- ckptplan -------------------------------------------------------------------------


class Checkpoints:
    """Plans of ckptplan, on the layers of one network.

    Attributes:
        error: What it says of this device, if it cannot measure bytes there.
    """

    def __init__(self, x: Tensor) -> None:
        import ckptplan

        self.library, self.x = ckptplan, x
        layers = nn.ModuleList(network())
        clear(layers)
        names = [(f"layer{i}", layer) for i, layer in enumerate(layers)]
        self.blocks = ckptplan.declare_blocks(layers, names)
        options = {"device": x.device, "dtype": x.dtype}
        self.profiles = ckptplan.profile_blocks(self.blocks, (x,), **options)
        self.error = ""
        try:
            self.step(PLAIN)
        except ckptplan.TimingOnlyProfileError as error:
            self.error = f"{type(error).__name__}: {error}"
            pairs = zip(self.profiles, layers, strict=True)
            self.profiles = [measured(p, layer, x) for p, layer in pairs]

    def step(self, budget: int) -> Step:
        """Return a step whose kept activations take at most `budget`."""
        plan = self.library.plan_checkpoints(
            self.profiles,
            self.blocks,
            target_kind="activation_budget_bytes",
            target_value=float(budget),
            activation_bucket_bytes=self.x.nbytes // 8,
            on_infeasible="best_effort",
        )
        run = self.library.apply_plan(self.blocks, plan, (self.x,), None)
        return partial(step, run, self.x)

    def steps(self) -> list[Step]:
        """Return a step for each number of layers, from all kept to none."""
        total = sum(p.activation_bytes_estimate for p in self.profiles)
        return [self.step(total * i // DEPTH) for i in range(DEPTH, -1, -1)]


def measured(profile: Any, layer: nn.Module, x: Tensor) -> Any:
    """Return a profile with the bytes that a layer keeps for its backward pass."""
    kept = measure_memory(lambda: layer(x.detach().requires_grad_())).live
    return dataclasses.replace(
        profile,
        timing_only=False,
        activation_bytes_estimate=int(kept),
        activation_bytes_method="isolated_forward_delta",
    )


# --- torch.compile --------------------------------------------------------------------


def compiled(x: Tensor, value: float) -> Step:
    """Return a compiled step of plain autograd with an `activation_memory_budget`."""

    def backend(graph: Any, inputs: Any) -> Any:  # Dynamo shares no graphs between two
        with torch._functorch.config.patch(activation_memory_budget=value):
            return compile_fx(graph, inputs)

    net = torch.compile(copy.deepcopy(network()), backend=backend, fullgraph=True)
    return partial(step, net, x)


# --- at equal bytes -------------------------------------------------------------------


def fastest(steps: Sequence[tuple[Step, int]], most: float) -> Step | None:
    """Return the first step, they keep less and less, whose peak is at most `most`."""
    return next((run for run, bytes_ in steps if bytes_ <= most * SLACK), None)


def main() -> None:
    """Measure all planners."""
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # all share the code of a container
    x = torch.randn(1, CHANNELS, SIZE, SIZE)
    full = peak(partial(step, network(), x))
    checkpoints = Checkpoints(x)
    print(f"ckptplan: {checkpoints.error or 'measures bytes here'}", flush=True)
    others = {
        "ckptplan": [(run, peak(run)) for run in checkpoints.steps()],
        "torch.compile": [(r, peak(r)) for r in (compiled(x, v) for v in VALUES)],
    }
    rows = []
    for fraction in FRACTIONS:
        budget = PLAIN if fraction == 1 else int(fraction * full)
        own = ours(x, budget)
        most = peak(own)
        own_compiled = ours(x, budget, compiled=True)
        most_compiled = peak(own_compiled)
        found = {name: fastest(steps, most) for name, steps in others.items()}
        runs = {name: run for name, run in found.items() if run is not None}
        times = measure({OURS: own, COMPILED: own_compiled, **runs}, REPETITIONS)
        reference = statistics.median(times[OURS])
        for name in (OURS, COMPILED, *others):
            row: dict[str, Any] = {"budget": fraction, "contender": name}
            row["most_bytes"] = most_compiled if name == COMPILED else most
            if name in times:
                beside = COMPILED if name == "torch.compile" else OURS
                pairs = zip(times[beside], times[name], strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                row |= {"seconds": statistics.median(times[name]), "ours_to_it": ratio}
            rows.append(row)
            print(
                f"{fraction:.1f} of {full / 1e6:.1f} MB, {most / 1e6:5.1f} MB: "
                f"{name:14} {row.get('ours_to_it', 'does not fit')}, {reference:.4f} s",
                flush=True,
            )
    settings = {"network": "the paper's layer, algebraic form", "depth": DEPTH}
    settings |= {"channels": CHANNELS, "size": SIZE, "plain_bytes": full, "threads": 1}
    settings |= {"repetitions": REPETITIONS, "backend": "inductor"}
    settings |= {
        "ckptplan": importlib.metadata.version("ckptplan"),
        "ckptplan_here": checkpoints.error or "measures bytes",
        "least_bytes": {name: min(b for _, b in s) for name, s in others.items()},
    }
    write("budget_peers", settings, rows)


if __name__ == "__main__":
    main()
