"""Peak memory of maximum likelihood against depth: `python -m benchmarks.flows`.

A Glow of one scale: its steps are a normalization, an LU matrix and an affine coupling.
nflows and normflows are given the same parameters, and the log-probabilities are
compared before anything is measured. The libraries scale differently in a coupling, so
there is one network as nflows writes it, and one as normflows does. A peer that is not
installed is left out, by name; `make bench` installs them.
"""

import copy
import importlib
import importlib.metadata
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch import (
    ActNorm,
    AffineCoupling,
    InvertibleModule,
    InvertibleSequential,
    LU1x1,
    PixelUnshuffle,
)
from invtorch.flows import Flow, StandardNormal
from invtorch.planning import measure_memory

IMAGE, BATCH, HIDDEN = (3, 32, 32), 4, 32
DEPTHS = (8, 32, 128)
TIMED, REPETITIONS = 32, 9  # steps, turns
EQUAL = 1e-5  # relative, of log-probabilities in single precision
LogProb = Callable[[Tensor], Tensor]


class Conditioner(nn.Sequential):
    """The network of a Glow coupling: convolutions of sizes 3, 1 and 3."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Apply the network; there is no context."""
        del context
        y: Tensor = super().forward(x)
        return y


def reordered(network: Conditioner, order: Tensor) -> Conditioner:
    """Return a copy whose outputs are in another order."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.copy_(parameter[order])
    return network


# --- the network here -----------------------------------------------------------------


def as_nflows(a: Tensor) -> Tensor:
    """Return the log-scale of nflows."""
    return torch.log(torch.sigmoid(a + 2) + 1e-3)


def as_normflows(a: Tensor) -> Tensor:
    """Return the log-scale of normflows, from latent variables to data."""
    return -F.logsigmoid(a + 2)


def glow(
    steps: int, form: str, image: tuple[int, ...] = IMAGE, hidden: int = HIDDEN
) -> InvertibleSequential:
    """Return a Glow of one scale, its couplings in the form of a library."""
    channels = 4 * image[0]
    layers: list[InvertibleModule] = [PixelUnshuffle(2)]
    for _ in range(steps):
        network = Conditioner(channels // 2, channels, hidden)
        coupling: InvertibleModule = AffineCoupling(network, scale=as_nflows)
        if form == "normflows":
            coupling = AffineCoupling(network, scale=as_normflows).inv
        layers += [ActNorm(channels), rotation(channels), coupling]
    net = InvertibleSequential(*layers)
    with torch.no_grad():
        net(torch.randn(BATCH, *image))  # the normalizations are initialized
    return net


def rotation(channels: int) -> LU1x1:
    """Return a rotation that is near the identity, as nflows can have it.

    Its factors need neither a permutation nor signs.
    """
    matrix = LU1x1(channels)
    skew = 0.05 * torch.randn(channels, channels, dtype=torch.float64)
    order, lower, upper = torch.linalg.lu(torch.linalg.matrix_exp(skew - skew.T))
    diagonal = upper.diagonal()
    if not torch.equal(order, torch.eye(channels, dtype=order.dtype)):
        raise RuntimeError("the rotation needs a permutation: draw another one")
    values = {"lower": lower.tril(-1), "upper": upper.triu(1)}
    values |= {"log_diagonal": diagonal.log(), "signs": torch.ones(channels)}
    return _assigned(matrix, **values, permutation=order.argmax(1))


# --- the peers ------------------------------------------------------------------------


def by_nflows(net: InvertibleSequential, shape: torch.Size) -> LogProb:
    """Return the log-probability by nflows, with the parameters of the network."""
    t = importlib.import_module("nflows.transforms")
    base = importlib.import_module("nflows.distributions").StandardNormal(shape)
    made = [t.SqueezeTransform(2)]
    for layer in list(net)[1:]:
        made.append(_NFLOWS[type(layer)](t, layer))
    flows = importlib.import_module("nflows.flows")
    flow = flows.Flow(t.CompositeTransform(made), base)
    clear(flow)
    return flow.log_prob


def _nflows_norm(t: Any, layer: ActNorm) -> nn.Module:
    made = t.ActNorm(len(layer.shift))
    made.initialized.fill_(True)
    return _assigned(made, log_scale=layer.log_scale, shift=layer.shift)


def _nflows_matrix(t: Any, layer: LU1x1) -> nn.Module:
    made = t.OneByOneConvolution(layer.channels)
    lower, upper = made.lower_indices, made.upper_indices
    made.permutation._permutation.copy_(torch.arange(layer.channels))
    diagonal = layer.log_diagonal.exp() - made.eps
    return _assigned(
        made,
        lower_entries=layer.lower[lower[0], lower[1]],
        upper_entries=layer.upper[upper[0], upper[1]],
        unconstrained_upper_diag=torch.expm1(diagonal).log(),
        bias=torch.zeros(layer.channels),
    )


def _nflows_coupling(t: Any, layer: AffineCoupling) -> nn.Module:
    network = layer.conditioner
    channels = network[-1].out_channels
    halves = torch.arange(channels).roll(channels // 2)  # shifts before scales
    mask = [0] * (channels // 2) + [1] * (channels // 2)
    return t.AffineCouplingTransform(mask, lambda *_: reordered(network, halves))


_NFLOWS = {
    ActNorm: _nflows_norm,
    LU1x1: _nflows_matrix,
    AffineCoupling: _nflows_coupling,
}


def by_normflows(net: InvertibleSequential, shape: torch.Size) -> LogProb:
    """Return the log-probability by normflows, with the parameters of the network.

    Its layers go from latent variables to data, and `log_prob` from the last one on.
    """
    nf = importlib.import_module("normflows")
    made = [nf.flows.Squeeze()]
    for layer in list(net)[1:]:
        kind = type(layer) if type(layer) in _NORMFLOWS else None
        made.append(_NORMFLOWS[kind](nf, layer))
    base = nf.distributions.DiagGaussian(tuple(shape), trainable=False)
    flow = nf.NormalizingFlow(base, made[::-1])
    clear(flow)
    return flow.log_prob


def _normflows_norm(nf: Any, layer: ActNorm) -> nn.Module:
    made = nf.flows.ActNorm((len(layer.shift), 1, 1))
    made.data_dep_init_done.fill_(1.0)
    shift = -layer.shift * (-layer.log_scale).exp()
    return _assigned(made, s=-layer.log_scale, t=shift)


def _normflows_matrix(nf: Any, layer: LU1x1) -> nn.Module:
    made = nf.flows.Invertible1x1Conv(layer.channels, use_lu=True)
    return _assigned(
        made,
        P=torch.eye(layer.channels)[layer.permutation],
        L=layer.lower,
        U=layer.upper,
        log_S=layer.log_diagonal,
        sign_S=layer.signs,
    )


def _normflows_coupling(nf: Any, layer: Any) -> nn.Module:
    network = layer.module.conditioner
    channels = network[-1].out_channels
    turns = torch.arange(channels).view(2, -1).flip(0).T.flatten()  # shift, scale, ...
    return nf.flows.AffineCouplingBlock(
        reordered(network, turns), scale_map="sigmoid", split_mode="channel"
    )


_NORMFLOWS: dict[type | None, Callable[[Any, Any], nn.Module]] = {
    ActNorm: _normflows_norm,
    LU1x1: _normflows_matrix,
    None: _normflows_coupling,  # an inverse
}


def _assigned(module: Any, **values: Tensor) -> Any:
    with torch.no_grad():
        for name, value in values.items():
            target = getattr(module, name)
            target.copy_(value.reshape(target.shape))
    return module


PEERS = {"nflows": by_nflows, "normflows": by_normflows}


def versions() -> dict[str, str | None]:
    """Return the version of every peer; `None` says that it is left out."""
    found: dict[str, str | None] = {}
    for name in PEERS:
        warnings.filterwarnings("ignore", module=name)  # of its older torch
        try:
            importlib.import_module(name)
            found[name] = importlib.metadata.version(name)
        except ImportError:
            found[name] = None
    return found


# --- what is measured -----------------------------------------------------------------


def contenders(
    net: InvertibleSequential, form: str, image: tuple[int, ...] = IMAGE
) -> dict[str, LogProb]:
    """Return all that compute the log-probability of the network, the peer last."""
    with torch.no_grad():
        shape = net(torch.zeros(1, *image)).shape[1:]
    flow = Flow(net, StandardNormal(shape))

    def ours(memory: str, anchors: int, x: Tensor) -> Tensor:
        net.memory, net.anchors = memory, anchors
        return flow.log_prob(x)

    found: dict[str, LogProb] = {
        "plain autograd": partial(ours, "store", 0),
        "invtorch, 8 anchors (default)": partial(ours, "invert", 8),
        "invtorch, anchors=0": partial(ours, "invert", 0),
    }
    if versions()[form] is not None:
        found[form] = PEERS[form](net, shape)
    return found


def step(log_prob: LogProb, x: Tensor) -> None:
    """Make one training step, without the optimizer."""
    (-log_prob(x).mean()).backward()


def prepared(
    steps: int, form: str, image: tuple[int, ...] = IMAGE, hidden: int = HIDDEN
) -> tuple[dict[str, LogProb], Tensor]:
    """Return all contenders on one network, and a batch."""
    torch.manual_seed(0)
    net = glow(steps, form, image, hidden)
    clear(net)
    x = torch.randn(BATCH, *image)
    return contenders(net, form, image), x


def compared(runs: dict[str, LogProb], x: Tensor) -> dict[str, float]:
    """Return how far each log-probability is from the first one, relative to it.

    Raises:
        RuntimeError: If one is further than rounding explains.
    """
    with torch.no_grad():
        values = {name: run(x) for name, run in runs.items()}
    reference = next(iter(values.values()))
    errors = {
        name: ((value - reference).abs() / reference.abs()).max().item()
        for name, value in values.items()
    }
    if max(errors.values()) > EQUAL:
        raise RuntimeError(f"log-probabilities differ: {errors}")
    return errors


def rows_of_memory(form: str, steps: int) -> list[dict[str, Any]]:
    """Count the bytes of a training step of all contenders."""
    runs, x = prepared(steps, form)
    errors = compared(runs, x)
    state = x.nbytes
    rows = []
    for name, run in runs.items():
        action = partial(step, run, x)
        action()  # what is kept from the first call on
        peak = measure_memory(action).peak
        row = {"form": form, "steps": steps, "contender": name, "bytes": peak}
        rows.append({**row, "states": peak / state, "log_prob_error": errors[name]})
        print(f"{form:10} {steps:4} steps  {name:30} {peak / 1e6:8.2f} MB", flush=True)
    return rows


def rows_of_time(form: str) -> list[dict[str, Any]]:
    """Time a training step of all contenders, in turn."""
    runs, x = prepared(TIMED, form)
    actions = {name: partial(step, run, x) for name, run in runs.items()}
    times = measure(actions, REPETITIONS)
    reference = statistics.median(times["plain autograd"])
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        row = {"form": form, "steps": TIMED, "contender": name, "median_s": median}
        rows.append(row | {"quartiles_s": [low, high], "ratio": median / reference})
        print(f"{form:10} {TIMED:4} steps  {name:30} {median / reference:8.2f}")
    return rows


def main() -> None:
    """Count memory at all depths, then time one of them."""
    for name, found in versions().items():
        if found is None:
            print(f"{name} is left out: it can't be imported (`make bench` gets it)")
    torch.set_num_threads(1)
    settings = {
        "network": "squeeze, then steps of ActNorm, LU1x1, AffineCoupling",
        "image": IMAGE,
        "batch": BATCH,
        "hidden": HIDDEN,
        "dtype": "float32",
        "peers": versions(),
    }
    memory = [row for form in PEERS for n in DEPTHS for row in rows_of_memory(form, n)]
    write("flows", settings, memory)
    settings |= {"threads": 1, "reference": "plain autograd"}
    write("flows_time", settings, [row for form in PEERS for row in rows_of_time(form)])


if __name__ == "__main__":
    main()
