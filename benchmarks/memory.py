"""Peak memory of a training step against depth: `python -m benchmarks.memory`.

Bytes are those of the profiler's memory events on a CPU and of the caching allocator on
CUDA, above what was allocated before the step: network, input and gradients.
"""

from functools import partial

import torch

from benchmarks.networks import CONTENDERS, algebraic, clear, step
from benchmarks.record import write
from invtorch.planning import measure_memory

DEPTHS = (8, 50, 100, 200, 400)
CHANNELS = HIDDEN = SIZE = 64


def main() -> None:
    """Measure all contenders at all depths."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for depth in DEPTHS:
        torch.manual_seed(0)
        net = algebraic(CHANNELS, HIDDEN, depth).to(device)
        x = torch.randn(1, CHANNELS, SIZE, SIZE, device=device)
        for name, contender in CONTENDERS.items():
            clear(net)
            training_step = partial(step, net, x, contender)
            peak = measure_memory(training_step, device=device).peak
            row = {"contender": name, "depth": depth, "bytes": peak}
            rows.append({**row, "states": peak / x.nbytes})
            print(f"{depth:4} layers  {name:30}  {peak / 1e6:8.1f} MB", flush=True)
    settings = {
        "network": "OrthogonalCoupling(GatedResidualBlock), strides 1 2 4 8",
        "channels": CHANNELS,
        "hidden": HIDDEN,
        "size": SIZE,
        "batch": 1,
        "dtype": "float32",
    }
    write("memory", settings, rows)


if __name__ == "__main__":
    main()
