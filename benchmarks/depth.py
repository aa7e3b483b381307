"""How exact are gradients and rebuilt inputs? `python -m benchmarks.depth [--full]`.

Couplings of three strengths are stacked to 8 … 2,000 layers (without `--full` to 200).
Gradients of all parameters are compared with those of plain autograd in float64. The
rebuilt input is the one that the backward pass sees; for plain autograd, which rebuilds
none, it is `net.inverse(net(x))`. Medians over the seeds count. The guard speaks as it
would by default; what it refuses is marked, and its error is still recorded.

A GPU may round the factors of float32 products to TF32: "float32" has that turned off,
and a precision of its own has it turned on, as PyTorch does by itself.
"""

import argparse
import contextlib
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import write
from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    Conjugation,
    DriftWarning,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    VolumePreserving,
)

CHANNELS, SIZE = 16, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STRENGTHS = (0.5, 1.0, 2.0)
LEARNING = 4  # passes after which anchors="auto" knows where they are needed
SEEDS = {
    False: {8: 1, 64: 1, 200: 1},
    True: {8: 2, 50: 2, 200: 2, 400: 1, 1000: 1, 2000: 1},
}  # networks drawn, for each depth


class Tap(VolumePreserving):
    """Do nothing but remember the input as it was rebuilt.

    In a list of its own: what a replay writes into attributes is undone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rebuilt: list[Tensor] = []

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Return a copy."""
        return x.clone()

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Return a copy and remember it."""
        self.rebuilt[:] = [y.detach().clone()]
        return y.clone()


class Reverse(VolumePreserving):
    """Reverse the order of the channels, so that the halves take turns."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Reverse it."""
        return x.flip(1)

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Reverse it back."""
        return y.flip(1)


def conditioner(strength: float, outputs: int = CHANNELS // 2) -> nn.Module:
    """Return two convolutions, the last one scaled by the strength."""
    last = nn.Conv2d(16, outputs, 3, padding=1)
    with torch.no_grad():
        last.weight.mul_(strength)
        last.bias.mul_(strength)
    first = nn.Conv2d(CHANNELS // 2, 16, 3, padding=1)
    return nn.Sequential(first, nn.SiLU(), last)


def additive(strength: float) -> list[InvertibleModule]:
    """Return an additive coupling."""
    return [AdditiveCoupling(conditioner(strength)), Reverse()]


def affine(strength: float) -> list[InvertibleModule]:
    """Return an affine coupling whose scale lies between 1/2 and 2."""
    return [AffineCoupling(conditioner(strength, CHANNELS)), Reverse()]


def paper(strength: float) -> list[InvertibleModule]:
    """Return the paper's layer as the paper writes it."""
    coupling = AdditiveCoupling(conditioner(strength))
    return [Conjugation(Householder1x1(CHANNELS), coupling)]


def algebraic(strength: float) -> list[InvertibleModule]:
    """Return the paper's layer in its algebraic form."""
    return [OrthogonalCoupling(conditioner(strength), channels=CHANNELS)]


LAYERS: dict[str, Callable[[float], list[InvertibleModule]]] = {
    "additive": additive,
    "affine": affine,
    "orthogonal, paper's form": paper,
    "orthogonal, algebraic form": algebraic,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "plain autograd": {"memory": "store"},
    "inverted, no anchors": {"anchors": 0},
    "inverted, 8 anchors (default)": {"anchors": 8},
    "inverted, anchors=auto": {"anchors": "auto"},
    "inverted, float64 state": {"anchors": 0, "state_dtype": torch.float64},
}
BASIC = tuple(STRATEGIES)[:3]
PRECISIONS = {  # and the strategies that are tried in each
    "float32": tuple(STRATEGIES),
    "float32, TF32 convolutions": (*BASIC, "inverted, float64 state"),
    "bfloat16 conditioners, float32 state": (*BASIC, "inverted, float64 state"),
    "bfloat16 state": BASIC,
}


def network(layer: str, strength: float, depth: int) -> InvertibleSequential:
    """Stack `depth` couplings."""
    members = [module for _ in range(depth) for module in LAYERS[layer](strength)]
    return InvertibleSequential(Tap(), Tap(), *members, guard="warn")


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of all parameters, as one vector in float64."""
    net.zero_grad()
    net(x).square().mean().backward()
    found = [p.grad.flatten().double() for p in net.parameters() if p.grad is not None]
    return torch.cat(found)


def relative(found: Tensor, truth: Tensor) -> float:
    """Return the relative distance of two vectors."""
    error = float((found - truth).detach().norm() / truth.detach().norm())
    return error if math.isfinite(error) else math.inf


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what the guard says of rebuilt states."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield heard
    heard += [str(w.message) for w in caught if w.category is DriftWarning]


def configured(
    net: InvertibleSequential, precision: str, options: dict[str, Any]
) -> InvertibleSequential:
    """Return a copy of the network under a strategy, in a precision."""
    net = deepcopy(net)
    if precision == "bfloat16 conditioners, float32 state":
        net.state_dtype = torch.float32
    for name, value in options.items():
        setattr(net, name, value)
    return net.bfloat16() if "bfloat16" in precision else net


def measure(layer: str, strength: float, depth: int, seed: int) -> list[dict[str, Any]]:
    """Measure all precisions and strategies of one network."""
    torch.manual_seed(seed)
    net = network(layer, strength, depth).to(DEVICE)
    x = torch.randn(1, CHANNELS, SIZE, SIZE, device=DEVICE)
    exact = deepcopy(net).double()
    exact.memory = "store"
    truth = gradient(exact, x.double())
    with torch.no_grad():
        growth = float(exact(x.double()).norm() / x.double().norm())
    rows = []
    for precision, strategies in PRECISIONS.items():
        if "TF32" in precision and DEVICE == "cpu":
            continue
        torch.backends.cudnn.allow_tf32 = "TF32" in precision
        for strategy in strategies:
            options = STRATEGIES[strategy]
            contender = configured(net, precision, options)
            start = x.bfloat16() if "bfloat16" in precision else x
            start = start.clone().requires_grad_()
            for _ in range(LEARNING if options.get("anchors") == "auto" else 1):
                with listening() as heard:
                    found = gradient(contender, start)
            rebuilt, exact_state = rebuilt_state(contender, start)
            row = {"layer": layer, "strength": strength, "depth": depth, "seed": seed}
            row |= {"precision": precision, "strategy": strategy, "growth": growth}
            row |= {"gradient_error": relative(found, truth)}
            row |= {"rebuilt_error": relative(rebuilt.double(), exact_state.double())}
            # no public name says where "auto" places the anchors of the next pass
            row |= {"anchors": len(contender._anchors.places(contender._layers))}
            rows.append(row | {"refused": bool(heard)})
    return rows


def rebuilt_state(net: InvertibleSequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state before the first coupling: rebuilt, and exact.

    It equals the input. The input itself is kept, and the layer before only notes it.
    """
    with torch.no_grad():
        exact: Tensor = net[0](x)
        if net.memory == "store":
            return net[1:].inverse(net(x)), exact
    (seen,) = net[1].rebuilt
    return seen, exact


def number(value: float | None) -> str:
    """Write an error for the table."""
    return "not finite" if value is None else f"{value:.1e}"


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the seeds: medians of the errors, and the share that was refused."""
    keys = ("layer", "strength", "depth", "precision", "strategy")
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[k] for k in keys), []).append(row)
    joined = []
    for case, members in cases.items():
        found = dict(zip(keys, case, strict=True))
        for name in ("growth", "gradient_error", "rebuilt_error", "anchors"):
            median = statistics.median(m[name] for m in members)
            found[name] = median if math.isfinite(median) else None
        found["refused"] = sum(m["refused"] for m in members) / len(members)
        joined.append(found)
    return joined


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="to 2,000 layers")
    full = parser.parse_args().full
    rows = []
    for layer in LAYERS:
        for strength in STRENGTHS:
            for depth, seeds in SEEDS[full].items():
                for seed in range(seeds):
                    rows += measure(layer, strength, depth, seed)
            shown = [r for r in medians(rows) if r["precision"] == "float32"]
            for row in shown[-len(STRATEGIES) :]:
                print(
                    f"{layer:27} x{strength:<4} {row['depth']:5} layers, grows "
                    f"{number(row['growth'])}: {row['strategy']:33} gradient "
                    f"{number(row['gradient_error'])}, input "
                    f"{number(row['rebuilt_error'])}"
                    f"{', refused' if row['refused'] else ''}",
                    flush=True,
                )
        settings = {"channels": CHANNELS, "size": SIZE, "seeds": SEEDS[full]}
        settings |= {"conditioner": "two 3x3 convolutions with SiLU, last one scaled"}
        settings |= {"null": "not finite", "refused": "share of the seeds"}
        write("depth_full" if full else "depth", settings, medians(rows))


if __name__ == "__main__":
    main()
