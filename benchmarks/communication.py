"""What a training step sends and keeps: `python -m benchmarks.communication`.

Two and four processes on the CPU train a small 3-D i-RIM under DDP and under FSDP2.
Counted are the tensors of each collective operation, the
bytes that a process writes to its sockets, and the bytes that it keeps. Each stands
beside the formula of docs/howto/communication.md; the last rows are these formulas for
the paper's 3-D network on 8 and 64 GPUs. No time is measured.

A tensor of a first axis of 3 cannot be divided by 2: FSDP2 pads each parameter along
its first axis to a multiple of the number of processes.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.record import write
from invtorch import OrthogonalCoupling
from invtorch.planning import measure_memory, memory_report
from mri_example.models import IRIM3D

PROCESSES, STEPS = (2, 4), (2, 6)
GPUS = (8, 64)
NAMES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
}
IO = Path("/proc/self/io")


class Case(NamedTuple):
    """A strategy, and in which dtypes it sends parameters and gradients."""

    sharded: bool
    parameters: torch.dtype = torch.float32
    gradients: torch.dtype = torch.float32
    on_cpus: bool = True


HALF = torch.bfloat16
CASES = {
    "DDP": Case(sharded=False),
    "DDP, `bf16_compress_hook`": Case(sharded=False, gradients=HALF, on_cpus=False),
    "FSDP2": Case(sharded=True),
    "FSDP2, bfloat16": Case(sharded=True, parameters=HALF, gradients=HALF),
    "FSDP2, bfloat16, gradients in float32": Case(sharded=True, parameters=HALF),
}


class Size(NamedTuple):
    """The network and what it is trained on."""

    channels: int = 16
    hidden: tuple[int, ...] = (16, 32)
    slab: int = 8
    side: int = 32

    def network(self, steps: int, memory: Any) -> IRIM3D:
        """Return it, without anchors."""
        torch.manual_seed(0)
        options = {"slab": self.slab, "memory": memory, "anchors": 0}
        strides = (1, 2)[: len(self.hidden)]
        return IRIM3D(self.channels, steps, self.hidden, strides, **options)


def on_paper(
    parameters: Iterable[Tensor], case: Case, processes: int
) -> dict[str, dict[str, int]]:
    """Return the bytes of a step: tensors of collectives, and what a process keeps.

    FSDP2 gathers each layer before its forward pass, and again before its backward
    pass, which rebuilds the input and differentiates with the same parameters.
    """
    shapes = [p.shape for p in parameters]
    rows = [-(-shape[0] // processes) if case.sharded else shape[0] for shape in shapes]
    own = sum(r * prod(shape[1:]) for r, shape in zip(rows, shapes, strict=True))
    kept = {"parameters": 4 * own, "gradients": 4 * own}
    kept |= {"optimizer": 8 * own + 4 * len(shapes), "buckets": 4 * own}  # and counts
    if not case.sharded:
        return {"tensors": {"all-reduce": own * case.gradients.itemsize}, "kept": kept}
    whole = processes * own
    sent = {"all-gather": 2 * whole * case.parameters.itemsize}
    sent |= {"reduce-scatter": whole * case.gradients.itemsize}
    return {"tensors": sent, "kept": kept | {"buckets": 0}}


def ring(tensors: dict[str, int], processes: int, reduce_scatter: int = 1) -> int:
    """Return the bytes that a process sends, where each sends to the next one."""
    passes = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": reduce_scatter}
    whole = sum(passes[name] * count for name, count in tensors.items())
    return round(whole * (processes - 1) / processes)


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the collective operations, and the bytes of their whole tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        """Call the operation, and count it if it is one."""
        del types
        if function.namespace == "c10d":
            lists = [a if isinstance(a, list | tuple) else [a] for a in arguments]
            sizes = [t.nbytes for one in lists for t in one if isinstance(t, Tensor)]
            short = str(function).split(".")[1]
            self.calls[NAMES.get(short, short)] += 1
            self.bytes[NAMES.get(short, short)] += max(sizes)
        return function(*arguments, **(options or {}))


def distributed(net: nn.Module, case: Case, processes: int) -> nn.Module:
    """Wrap a network, or shard its couplings and then the whole."""
    if not case.sharded:
        return DistributedDataParallel(net, init_sync=False)  # one seed made all equal
    mesh = init_device_mesh("cpu", (processes,))
    policy = MixedPrecisionPolicy(
        case.parameters, case.gradients, cast_forward_inputs=False
    )
    for layer in net.modules():
        if isinstance(layer, OrthogonalCoupling):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy)
    return net


def written() -> int:
    """Return the bytes that this process has written, to sockets too."""
    return int(IO.read_text().split("wchar:")[1].split()[0]) if IO.exists() else 0


def measure(
    size: Size, steps: int, memory: str, case: Case, processes: int
) -> dict[str, Any]:
    """Measure a step of this process, after two to begin with."""
    whole = size.network(steps, memory)
    wrapped: list[nn.Module] = []
    made = measure_memory(lambda: wrapped.append(distributed(whole, case, processes)))
    net, optimizer = wrapped[0], torch.optim.Adam(whole.parameters())
    image = torch.randn(1, 1, size.slab, size.side, size.side, dtype=torch.complex64)
    mask = torch.ones(1, 1, 1, 1, size.side)

    def step() -> None:
        torch.autograd.backward(net(image, mask).abs().square().mean())

    for _ in range(2):  # DDP divides gradients into buckets anew after the first
        step()
    optimizer.step()
    begin = written()
    step()
    wire = written() - begin
    with Collectives() as collectives:
        step()
    report = memory_report(step, net, optimizer)
    # what a thread of gloo frees is not counted as freed, so the least of three counts
    peaks = [report.activations, *(measure_memory(step).peak for _ in range(2))]
    kept = report._asdict() | {"activations": min(peaks)}
    kept |= {"buckets": 0 if case.sharded else made.live}
    del kept["cache"]
    counted = {"calls": dict(collectives.calls), "tensors": dict(collectives.bytes)}
    return counted | {"written": wire, "kept": kept}


def take_part(
    rank: int, processes: int, meeting: str, calls: Sequence[Callable[..., Any]]
) -> list[Any]:
    """Make the measurements as one of some processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=processes
    )
    try:
        return [call(processes=processes) for call in calls]
    finally:
        dist.destroy_process_group()


def together(processes: int, calls: Sequence[Callable[..., Any]]) -> list[Any]:
    """Make measurements in as many processes, and return those of the first.

    Raises:
        RuntimeError: If another process sends something else.
    """
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        meeting = f"file://{folder}/meeting"
        others = (processes, meeting, calls)
        ranks = [pool.submit(take_part, rank, *others) for rank in range(processes)]
        found = [rank.result() for rank in ranks]
    for results in zip(*found, strict=True):
        sent = [{k: v for k, v in one.items() if k != "kept"} for one in results]
        if any(one != sent[0] for one in sent):
            raise RuntimeError(f"processes send different bytes: {sent}")
    return found[0]


def measured(
    processes: int, size: Size, depths: Sequence[int] = STEPS
) -> list[dict[str, Any]]:
    """Return a row for each case and depth, beside its formula."""
    names = [name for name, case in CASES.items() if case.on_cpus]
    settings = [(s, "invert", name) for name in names for s in depths]
    settings += [(depths[0], m, "FSDP2") for m in ("checkpoint", "store")]
    calls = [partial(measure, size, s, m, CASES[name]) for s, m, name in settings]
    rows = []
    for (steps, memory, name), found in zip(
        settings, together(processes, calls), strict=True
    ):
        net = size.network(steps, memory)
        row = {"processes": processes, "case": name, "memory": memory}
        row |= {"couplings": steps * len(size.hidden), **found}
        paper = on_paper(net.parameters(), CASES[name], processes)
        rows.append(row | {"sent": ring(found["tensors"], processes), "paper": paper})
    return rows


def of_the_paper() -> list[dict[str, Any]]:
    """Return the formulas for the paper's 3-D network on GPUs."""
    with torch.device("meta"):
        parameters = [*IRIM3D().parameters()]
    rows = []
    for name, case in CASES.items():
        for processes in GPUS:
            found = on_paper(parameters, case, processes)
            sent = ring(found["tensors"], processes)
            rows.append({"processes": processes, "case": name, "sent": sent, **found})
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of the tables of the page, in MB: what is sent, what is kept."""
    by = {(row["case"], row["processes"]): row for row in rows}
    lines = []
    for name in CASES:
        cells = []
        for processes in GPUS:
            row = by[name, processes]
            gathered = {"all-gather": row["tensors"].get("all-gather", 0)}
            cells += [row["sent"], row["sent"] - ring(gathered, processes)]
        lines.append(_line(name, cells))
    for name, processes in (("DDP", 8), ("FSDP2", 8), ("FSDP2", 64)):
        kept = by[name, processes]["kept"].values()
        where = "any number of" if name == "DDP" else processes
        lines.append(_line(f"{name}, {where} GPUs", [*kept, sum(kept)]))
    return lines


def _line(name: str, counts: Iterable[int]) -> str:
    return f"| {' | '.join([name, *map(_mb, counts)])} |"


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}" if 0 < count < 1e8 else f"{count / 1e6:,.0f}"


def main() -> None:
    """Measure, print the tables of the page, and write all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small state")
    quick = parser.parse_args().quick
    size = Size(8, (8, 8), 2, 8) if quick else Size()
    rows = []
    for processes in PROCESSES:
        for row in measured(processes, size):
            rows.append(row)
            about = f"{row['processes']} {row['case']:38} {row['memory']:10}"
            print(f"{about} {row['couplings']:3} couplings: {row['tensors']}")
    paper = of_the_paper()
    print("\n".join(tables(paper)))
    if not quick:
        write("communication", size._asdict() | {"backend": "gloo"}, rows + paper)


if __name__ == "__main__":
    main()
