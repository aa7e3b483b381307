"""Time and memory of each coupling, and of chains of layers as people build them.

`python -m benchmarks.layers` measures both in about fifteen minutes on a free machine,
`python -m benchmarks.layers memory` or `time` one of them. The contenders are plain
autograd, `torch.utils.checkpoint` around every layer, and this library with its
default anchors and without any. Times are medians of steps in which contenders take
turns. Bytes are counted as by `benchmarks.memory`.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.networks import clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    DriftError,
    HaarDownsample,
    InvertibleModule,
    InvertibleSequential,
    LeapfrogStep,
    LU1x1,
    MomentumStep,
    OrthogonalCoupling,
    PixelUnshuffle,
    ReversibleBlock,
    SplineCoupling,
)
from invtorch.nets.glow import GlowConditioner
from invtorch.planning import measure_memory

State = Tensor | tuple[Tensor, ...]
CHANNELS, HIDDEN = 64, 64
SHAPES = {"time": (4, 64), "memory": (1, 32)}  # how many images, and of which size
VECTORS = 256  # for each image
BINS = 8
OF_GLOW: dict[str, int] = {"hidden": 128, "dims": 2, "context": 0}
LAYERS = 16  # of the times
TURNS, SHORT = 7, 21  # of a step; where it takes less than a second, more of them
DEPTHS = (8, 50, 200)  # of the memory
FEW = (8, 24)  # of the memory of contenders that grow with depth


def convolutions(inputs: int, outputs: int, hidden: int = HIDDEN) -> nn.Module:
    """Return the conditioner of all couplings of images, with weak outputs."""
    last = nn.Conv2d(hidden, outputs, 3, padding=1)
    return nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(), weak(last))


def perceptron(inputs: int, outputs: int, hidden: int = HIDDEN) -> nn.Module:
    """Return the conditioner of couplings of vectors, with weak outputs."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), weak(nn.Linear(hidden, outputs))
    )


def weak(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Divide the weights by 10: layers begin near the identity, as is usual."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(10)
    return layer


class Case(NamedTuple):
    """Networks of one kind.

    Attributes:
        layers: Returns as many layers as its argument says.
        state: Draws a state with a number of images of a size.
        context: Draws the context, if there is one.
    """

    layers: Callable[[int], Iterable[InvertibleModule]]
    state: Callable[[int, int], State]
    context: Callable[[int, int], tuple[Tensor, ...]] = lambda *_: ()

    def network(self, depth: int, shape: tuple[int, int]) -> InvertibleSequential:
        """Return a network, with gradients to add to, that has seen a batch."""
        net = InvertibleSequential(*self.layers(depth))
        with torch.no_grad():
            net(self.state(*shape), *self.context(*shape))
        clear(net)
        return net


def image(batch: int, size: int, channels: int = CHANNELS) -> Tensor:
    """Draw images."""
    return torch.randn(batch, channels, size, size)


def vectors(batch: int, _: int) -> Tensor:
    """Draw vectors."""
    return torch.randn(batch * VECTORS, 16)


def pair(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw a state of two tensors."""
    x = image(batch, size, CHANNELS // 2)
    return x, torch.zeros_like(x)


def turns(
    make: Callable[..., InvertibleModule], depth: int
) -> Iterable[InvertibleModule]:
    """Return couplings whose halves take turns."""
    return [make(swap=i % 2 == 1) for i in range(depth)]


def glow(depth: int) -> Iterable[InvertibleModule]:
    """Return steps of Glow, of three layers each."""
    for i in range(depth):
        if i % 3 == 0:
            yield ActNorm(CHANNELS)
        elif i % 3 == 1:
            yield LU1x1(CHANNELS)
        else:
            network = GlowConditioner(CHANNELS // 2, CHANNELS, **OF_GLOW)
            nn.init.normal_(network.last.weight, std=0.01)
            yield AffineCoupling(network)


def revnet(depth: int) -> Iterable[InvertibleModule]:
    """Return three stages of a RevNet, each at half of the resolution of the last."""
    channels = 16
    for i in range(depth):
        if i in (depth // 3, 2 * depth // 3):
            yield PixelUnshuffle() if channels == 16 else HaarDownsample()
            channels *= 4
        else:
            half = channels // 2
            f, g = (convolutions(half, half, half) for _ in range(2))
            yield ReversibleBlock(f, g)


def splines(depth: int) -> Iterable[InvertibleModule]:
    """Return couplings of splines on vectors, with a mixing layer before each."""
    for i in range(depth):
        if i % 2 == 0:
            yield LU1x1(16, dim=-1)
        else:
            yield SplineCoupling(perceptron(8, 8 * (3 * BINS - 1)), bins=BINS, dim=-1)


def additive(swap: bool) -> InvertibleModule:
    """Return an additive coupling."""
    return AdditiveCoupling(convolutions(CHANNELS // 2, CHANNELS // 2), swap=swap)


def affine(swap: bool) -> InvertibleModule:
    """Return an affine coupling."""
    return AffineCoupling(convolutions(CHANNELS // 2, CHANNELS), swap=swap)


def spline(swap: bool) -> InvertibleModule:
    """Return a coupling of splines."""
    size = 3 * BINS - 1
    network = convolutions(CHANNELS // 2, CHANNELS // 2 * size, HIDDEN // 4)
    return SplineCoupling(network, bins=BINS, swap=swap)


def orthogonal() -> InvertibleModule:
    """Return an additive coupling in another basis."""
    network = convolutions(CHANNELS // 2, CHANNELS // 2)
    return OrthogonalCoupling(network, channels=CHANNELS)


def reversible() -> InvertibleModule:
    """Return a block of a RevNet."""
    half = CHANNELS // 2
    return ReversibleBlock(convolutions(half, half), convolutions(half, half))


def conditional() -> InvertibleModule:
    """Return a layer that a context scales and shifts."""
    return ConditionalAffine(convolutions(4, 2 * CHANNELS))


def momentum() -> InvertibleModule:
    """Return a step with momentum."""
    return MomentumStep(convolutions(CHANNELS // 2, CHANNELS // 2))


def leapfrog() -> InvertibleModule:
    """Return a step of a second-order dynamic, of a small step size."""
    return LeapfrogStep(convolutions(CHANNELS // 2, CHANNELS // 2), step=0.1)


def alike(make: Callable[[], InvertibleModule]) -> Callable[[int], Any]:
    """Return what makes a number of layers of one kind."""
    return lambda depth: [make() for _ in range(depth)]


CASES: dict[str, Case] = {
    "AdditiveCoupling": Case(partial(turns, additive), image),
    "AffineCoupling": Case(partial(turns, affine), image),
    "SplineCoupling": Case(partial(turns, spline), image),
    "OrthogonalCoupling": Case(alike(orthogonal), image),
    "ReversibleBlock": Case(alike(reversible), image),
    "ConditionalAffine": Case(
        alike(conditional), image, lambda *shape: (image(*shape, channels=4),)
    ),
    "LeapfrogStep": Case(alike(leapfrog), pair),
    "Glow: ActNorm, LU1x1, AffineCoupling": Case(glow, image),
    "RevNet: 3 stages, 16 to 256 channels": Case(revnet, partial(image, channels=16)),
    "momentum network: MomentumStep": Case(alike(momentum), pair),
    "spline flow on vectors: LU1x1, SplineCoupling": Case(splines, vectors),
}


# --- contenders -----------------------------------------------------------------------


def plain(net: InvertibleSequential, x: State, *context: Tensor) -> State:
    """Run with plain autograd."""
    net.memory = "store"
    return net(x, *context)  # type: ignore[no-any-return]


def checkpointed(net: InvertibleSequential, x: State, *context: Tensor) -> State:
    """Run with `torch.utils.checkpoint` around every layer."""
    net.memory = "store"
    for layer in net:
        x = checkpoint(layer, x, *context, use_reentrant=False)
    return x


def inverted(
    net: InvertibleSequential, x: State, *context: Tensor, anchors: int
) -> State:
    """Run with this library."""
    net.memory, net.anchors = "invert", anchors
    return net(x, *context)  # type: ignore[no-any-return]


REFERENCE, DEFAULT = "plain autograd", "invtorch, 8 anchors"
WITHOUT = "invtorch, anchors=0"
CONTENDERS: dict[str, Callable[..., State]] = {
    REFERENCE: plain,
    "checkpoint every layer": checkpointed,
    DEFAULT: partial(inverted, anchors=8),
    WITHOUT: partial(inverted, anchors=0),
}


def step(run: Callable[..., State], x: State, context: tuple[Tensor, ...]) -> None:
    """Make one training step, without the optimizer."""
    y = run(x, *context)
    outputs = y if isinstance(y, tuple) else (y,)
    torch.stack([t.square().mean() for t in outputs]).sum().backward()


def steps(
    case: Case, depth: int, shape: tuple[int, int]
) -> dict[str, Callable[[], None]]:
    """Return a training step of each contender, on one network."""
    torch.manual_seed(0)
    net = case.network(depth, shape)
    x, context = case.state(*shape), case.context(*shape)
    return {
        name: partial(step, partial(run, net), x, context)
        for name, run in CONTENDERS.items()
    }


# --- measurements ---------------------------------------------------------------------


def memory_of(name: str, case: Case) -> list[dict[str, Any]]:
    """Count the peak bytes of a step of each contender at several depths."""
    shape = SHAPES["memory"]
    x = case.state(*shape)
    state = sum(t.nbytes for t in x) if isinstance(x, tuple) else x.nbytes
    rows = []
    for contender in (REFERENCE, "checkpoint every layer", DEFAULT, WITHOUT):
        for depth in DEPTHS if contender in (DEFAULT, WITHOUT) else FEW:
            action = steps(case, depth, shape)[contender]
            try:
                peak = measure_memory(action).peak
            except DriftError as error:  # without anchors it may drift too far
                print(f"{name:48} {contender:24} {depth:4} layers: {error}", flush=True)
                continue
            row = {"measure": "memory", "case": name, "contender": contender}
            row |= {"depth": depth, "bytes": peak, "states": peak / state}
            rows.append(row)
            print(
                f"{name:48} {contender:24} {depth:4} layers {peak / 1e6:8.2f} MB",
                flush=True,
            )
    return rows


def times_of(name: str, case: Case) -> list[dict[str, Any]]:
    """Time the steps of all contenders in turn."""
    contenders = steps(case, LAYERS, SHAPES["time"])
    (once,) = measure({REFERENCE: contenders[REFERENCE]}, 1)[REFERENCE]
    times = measure(contenders, SHORT if once < 1 else TURNS)
    reference = statistics.median(times[REFERENCE])
    rows = []
    for contender, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        row = {"measure": "time", "case": name, "contender": contender}
        row |= {"depth": LAYERS, "median_s": median, "quartiles_s": [low, high]}
        rows.append(row | {"ratio": median / reference})
        print(f"{name:48} {contender:24} {median / reference:6.2f}", flush=True)
    return rows


MEASURES: dict[str, Callable[[str, Case], list[dict[str, Any]]]] = {
    "memory": memory_of,
    "time": times_of,
}


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measures", nargs="*", choices=[[], *MEASURES])
    chosen = parser.parse_args().measures or [*MEASURES]
    torch.set_num_threads(1)
    for chosen_name in chosen:
        measured = [MEASURES[chosen_name](name, case) for name, case in CASES.items()]
        _write(chosen_name, [row for rows in measured for row in rows])


def _write(measure_name: str, rows: list[dict[str, Any]]) -> None:
    batch, size = SHAPES[measure_name]
    settings = {
        "channels": CHANNELS,
        "images": f"{batch} of {size} x {size}",
        "conditioner": f"two 3x3 convolutions, {HIDDEN} hidden channels, and a ReLU",
        "bins": BINS,
        "dtype": "float32",
        "threads": 1,
        "reference": REFERENCE,
    }
    write(f"layers_{measure_name}", settings, rows)


if __name__ == "__main__":
    main()
