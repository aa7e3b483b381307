"""What each closed form gains: `python -m benchmarks.closed_forms`.

A training step with a hand-written derivative is timed beside the same step left to
autograd, by turns in one process; medians count. A part that gains less than 5 % at
every size is not worth its lines.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.layers import revnet
from benchmarks.networks import Case, additive, algebraic, clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import (
    AdditiveCoupling,
    InvertibleSequential,
    OrthogonalCoupling,
    ReversibleBlock,
)
from invtorch.closed_form import couplings, without_closed_forms

Leave = Callable[[], AbstractContextManager[object]]


class Part(NamedTuple):
    """One closed form, and a network that uses it.

    Attributes:
        name: What it is called.
        network: What makes the network.
        state: The shape of its state.
        repetitions: How often a step is timed.
        leave: What leaves the part to something simpler.
    """

    name: str
    network: Callable[[], InvertibleSequential]
    state: tuple[int, ...]
    repetitions: int
    leave: Leave


@contextmanager
def products_with_the_matrix() -> Iterator[None]:
    """Multiply with the orthogonal matrix, whatever the number of reflections."""
    few, couplings.FEW = couplings.FEW, 0
    try:
        yield
    finally:
        couplings.FEW = few


def over_chains(
    coupling: type[nn.Module], activation: type[nn.Module], depth: int
) -> InvertibleSequential:
    """Return couplings over two convolutions with an activation between them."""
    layers = []
    for _ in range(depth):
        chain = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1),
            activation(),
            nn.Conv2d(64, 32, 3, padding=1),
        )
        options = {"channels": 64} if coupling is OrthogonalCoupling else {}
        layers.append(coupling(chain, **options))
    return InvertibleSequential(*layers)


def over_vectors(depth: int) -> InvertibleSequential:
    """Return additive couplings over two linear maps, for states that are vectors."""
    return InvertibleSequential(
        *[
            AdditiveCoupling(
                nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
            )
            for _ in range(depth)
        ]
    )


def reversible(depth: int) -> InvertibleSequential:
    """Return three stages of a RevNet."""
    return InvertibleSequential(*revnet(depth))


PAPER = partial(without_closed_forms, OrthogonalCoupling)
ADDITIVE = partial(without_closed_forms, AdditiveCoupling)
REVERSIBLE = partial(without_closed_forms, ReversibleBlock)
SIZES: list[tuple[str, Case, int, int]] = [
    ("64 x 64", Case(algebraic, 64, (64, 64)), 32, 15),
    ("128 x 128", Case(algebraic, 64, (128, 128)), 8, 9),
    ("16 x 48 x 48", Case(algebraic, 32, (16, 48, 48)), 8, 7),
    ("tiny", Case(algebraic, 16, (16, 16)), 32, 25),
]
ON_THE_PAPERS_LAYER: dict[str, Leave] = {
    "orthogonal coupling over a gated block": PAPER,
    "reflections one by one": products_with_the_matrix,
}
PARTS = [
    *(
        Part(
            f"paper's layer, {size}: {name}",
            partial(case.network, depth),
            (1, case.channels, *case.space),
            repetitions,
            leave,
        )
        for name, leave in ON_THE_PAPERS_LAYER.items()
        for size, case, depth, repetitions in SIZES
    ),
    Part(
        "additive coupling over convolutions, 64 x 64",
        partial(Case(additive, 64, (64, 64)).network, 16),
        (1, 64, 64, 64),
        15,
        ADDITIVE,
    ),
    Part(
        "additive coupling over convolutions, tiny",
        partial(Case(additive, 16, (16, 16)).network, 32),
        (1, 16, 16, 16),
        25,
        ADDITIVE,
    ),
    Part(
        "additive coupling over linear maps",
        partial(over_vectors, 32),
        (256, 64),
        25,
        ADDITIVE,
    ),
    *(
        Part(f"RevNet, {name}", partial(reversible, 16), state, repetitions, REVERSIBLE)
        for name, state, repetitions in (
            ("64 x 64", (4, 16, 64, 64), 15),
            ("tiny", (1, 16, 16, 16), 25),
        )
    ),
    *(
        Part(
            f"orthogonal coupling over convolutions with {activation.__name__}",
            partial(over_chains, OrthogonalCoupling, activation, 16),
            (1, 64, 32, 32),
            15,
            PAPER,
        )
        for activation in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU)
    ),
]


def main() -> None:
    """Measure all parts."""
    torch.set_num_threads(1)
    rows = []
    for part in PARTS:
        torch.manual_seed(0)
        net, x = part.network(), torch.randn(part.state)
        clear(net)
        times = measure(
            {
                "closed form": partial(step, net, x, nullcontext),
                "left": partial(step, net, x, part.leave),
            },
            part.repetitions,
        )
        with_it, without = (statistics.median(t) for t in times.values())
        rows.append(
            {
                "part": part.name,
                "closed_form_s": with_it,
                "left_s": without,
                "gain": 1 - with_it / without,
            }
        )
        print(f"{part.name:70} gains {1 - with_it / without:6.1%}", flush=True)
    write("closed_forms", {"threads": 1, "anchors": 8, "guard": "raise"}, rows)


def step(net: InvertibleSequential, x: Tensor, leave: Leave) -> None:
    """Make one training step, without the optimizer."""
    with leave():
        net(x).square().mean().backward()


if __name__ == "__main__":
    main()
