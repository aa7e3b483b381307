"""Time against memory: `python -m benchmarks.budget`.

A chain of the paper's layers runs under budgets from pure inversion to plain autograd.
For each, the plan's peak is compared with the measured one, and steps are timed with
the budgets interleaved.
"""

import functools
import statistics
from collections import Counter

import torch

from benchmarks.contenders import step
from benchmarks.networks import algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch.planning import measure_memory

CHANNELS, SIZE, DEPTH = 32, 32, 100
STATES = (12, 20, 40, 80, 160, 320)
PLAIN = 10**12
REPETITIONS = 7


def main() -> None:
    """Measure the budgets."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = algebraic(CHANNELS, CHANNELS, DEPTH)
    net.anchors, net.memory = 0, "auto"
    clear(net)
    x = torch.randn(1, CHANNELS, SIZE, SIZE)

    def train(budget: int) -> None:
        net.budget = budget
        step(net, x)

    budgets = [*(states * x.nbytes for states in STATES), PLAIN]
    times = measure(
        {str(b): functools.partial(train, b) for b in budgets},
        REPETITIONS,
    )
    rows = []
    for budget in budgets:
        measured = measure_memory(functools.partial(train, budget)).peak
        plan = net.plan
        assert plan is not None
        row = {"budget": budget, "predicted": plan.peak, "measured": measured}
        row |= {"seconds": statistics.median(times[str(budget)])}
        row |= {
            "predicted_seconds": plan.seconds,
            "strategies": Counter(plan.strategies),
        }
        rows.append(row)
        print(
            f"budget {min(budget, plan.peak) / x.nbytes:6.1f} states: predicted "
            f"{plan.peak / x.nbytes:6.1f}, measured {measured / x.nbytes:6.1f}, "
            f"{1e3 * row['seconds']:6.0f} ms, {dict(row['strategies'])}"
        )
    settings = {"network": "the paper's layer, algebraic form", "depth": DEPTH}
    settings |= {"channels": CHANNELS, "size": SIZE, "state": x.nbytes, "anchors": 0}
    write("budget", settings, rows)


if __name__ == "__main__":
    main()
