"""Layers compute what other libraries do, with the same parameters.

The numbers in `tests/data/golden_flows.npz` are those of nflows 0.14, normflows 1.7.3,
FrEIA 0.2 and zuko 1.6.0; `make golden` writes them. Each layer is compared in both
directions, with the log-determinants, in double and in single precision.
"""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invtorch import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ElementwiseAffine,
    HaarDownsample,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    LeakyReLU,
    Logit,
    LU1x1,
    Orthogonal1x1,
    Permute,
    PixelUnshuffle,
    SplineCoupling,
)
from tests.golden.networks import PATH, Mix, mixing

Parameters = dict[str, Tensor]
# relative to the largest number of a tensor
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def network(p: Parameters, prefix: str, order: Tensor | None = None) -> Mix:
    """Return the network of a coupling, with its outputs in another order."""
    weight, bias = p[f"{prefix}weight"], p[f"{prefix}bias"]
    order = torch.arange(len(bias)) if order is None else order
    return mixing(weight[order], bias[order])


def halves_swapped(count: int) -> Tensor:
    """Return the order that exchanges scales and shifts."""
    return torch.arange(count).roll(count // 2)


def taking_turns(count: int) -> Tensor:
    """Return the order that collects scales, which follow a shift each, and shifts."""
    return torch.cat([torch.arange(1, count, 2), torch.arange(0, count, 2)])


def assigned(layer: InvertibleModule, **values: Tensor) -> InvertibleModule:
    """Return the layer with these parameters and buffers."""
    layer = layer.to(next(iter(values.values())).dtype)
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(value)
    return layer


# --- nflows ---------------------------------------------------------------------------


def nflows_scale(a: Tensor) -> Tensor:
    return torch.log(torch.sigmoid(a + 2) + 1e-3)


def nflows_affine(p: Parameters) -> InvertibleModule:
    net = network(p, "transform_net.", halves_swapped(6))
    return AffineCoupling(net, scale=nflows_scale)


def nflows_affine_mask(p: Parameters) -> InvertibleModule:
    net = network(p, "transform_net.", halves_swapped(4))
    mask = torch.tensor([True, False, True, False])
    return AffineCoupling(net, split=mask, scale=nflows_scale)


def nflows_additive(p: Parameters) -> InvertibleModule:
    return AdditiveCoupling(network(p, "transform_net."))


def nflows_lu(p: Parameters) -> InvertibleModule:
    n = len(p["bias"])
    lower, upper = torch.zeros(2, n, n, dtype=torch.float64)
    lower[*torch.tril_indices(n, n, -1)] = p["lower_entries"]
    upper[*torch.triu_indices(n, n, 1)] = p["upper_entries"]
    matrix = assigned(
        LU1x1(n),
        lower=lower,
        upper=upper,
        log_diagonal=(F.softplus(p["unconstrained_upper_diag"]) + 1e-3).log(),
        signs=torch.ones(n),
        permutation=torch.arange(n),
    )
    return InvertibleSequential(matrix, assigned(ElementwiseAffine(n), shift=p["bias"]))


def actnorm(p: Parameters) -> InvertibleModule:
    layer = ActNorm(p["batch"].shape[1]).double()
    layer.initialize(p["batch"])
    return layer


def nflows_householder(p: Parameters) -> InvertibleModule:
    vectors = p["q_vectors"].flip(0)  # the first one is applied first
    return assigned(Householder1x1(vectors.shape[1], len(vectors)), vectors=vectors)


def nflows_spline(p: Parameters) -> InvertibleModule:
    net = network(p, "transform_net.mix.")
    return SplineCoupling(net, bins=5, tail_bound=3.0, bound=4.0)


# --- zuko, normflows ------------------------------------------------------------------


def zuko_spline(p: Parameters) -> InvertibleModule:
    return SplineCoupling(network(p, "mix."), bins=5, tail_bound=3.0, bound=4.0)


def zuko_rotation(p: Parameters) -> InvertibleModule:
    layer = Orthogonal1x1(len(p["matrix"])).double()
    (parametrization,) = layer.matrix.parametrizations.weight
    with torch.no_grad():
        parametrization.base.copy_(torch.eye(len(p["matrix"])))
        layer.matrix.parametrizations.weight.original.copy_(p["matrix"] - p["matrix"].T)
    return layer


def normflows_spline(p: Parameters) -> InvertibleModule:
    net = network(p, "mix.")
    return SplineCoupling(net, bins=5, tails="circular", tail_bound=3.0, bound=4.0)


NORMFLOWS_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda a: a,
    "sigmoid": lambda a: -F.logsigmoid(a + 2),
    "sigmoid_inv": lambda a: F.logsigmoid(a + 2),
}


def normflows_coupling(p: Parameters, scale: str) -> InvertibleModule:
    net = network(p, "flows.1.param_map.", taking_turns(4))
    return AffineCoupling(net, scale=NORMFLOWS_SCALES[scale]).inv


def normflows_1x1(p: Parameters) -> InvertibleModule:
    return assigned(
        LU1x1(len(p["P"])),
        lower=p["L"].tril(-1),
        upper=p["U"].triu(1),
        log_diagonal=p["log_S"],
        signs=p["sign_S"],
        permutation=p["P"].argmax(1),
    )


def normflows_actnorm(p: Parameters) -> InvertibleModule:
    scale, shift = p["s"].flatten(), p["t"].flatten()
    return assigned(ElementwiseAffine(len(scale)), log_scale=scale, shift=shift).inv


# --- FrEIA ----------------------------------------------------------------------------


def atan(a: Tensor) -> Tensor:
    return 2.0 * 0.636 * torch.atan(a)


def freia_glow(p: Parameters, **options: bool) -> InvertibleModule:
    first, second = network(p, "subnet2."), network(p, "subnet1.")
    return InvertibleSequential(
        AffineCoupling(first, swap=True, scale=atan, **options),
        AffineCoupling(second, scale=atan, **options),
    )


def freia_rnvp(p: Parameters) -> InvertibleModule:
    def both(i: int) -> Mix:
        names = f"subnet_s{i}.", f"subnet_t{i}."
        weight, bias = (
            torch.cat([p[n + k] for n in names]) for k in ("weight", "bias")
        )
        return mixing(weight, bias)

    def clamp(a: Tensor) -> Tensor:
        return 1.5 * torch.tanh(a)

    return InvertibleSequential(
        AffineCoupling(both(2), swap=True, scale=clamp),
        AffineCoupling(both(1), scale=clamp),
    )


def freia_one_sided(p: Parameters) -> InvertibleModule:
    net = network(p, "subnet.")
    return AffineCoupling(net, split=2, scale=lambda a: 4 * (torch.sigmoid(a) - 0.5))


def freia_nice(p: Parameters) -> InvertibleModule:
    first, second = network(p, "F."), network(p, "G.")
    return InvertibleSequential(
        AdditiveCoupling(first, swap=True), AdditiveCoupling(second)
    )


def freia_all_in_one(p: Parameters, gin: bool = False) -> InvertibleModule:
    channels = p["global_offset"].numel()
    coupling = AffineCoupling(
        mixing(0.1 * p["subnet.weight"], 0.1 * p["subnet.bias"]),
        split=channels - channels // 2,
        scale=lambda a: 2.0 * torch.tanh(a),
        volume_preserving=gin,
    )
    scale = 0.1 * F.softplus(p["global_scale"].flatten(), beta=0.5)
    affine = assigned(
        ElementwiseAffine(channels),
        log_scale=torch.zeros_like(scale) if gin else scale.log(),
        shift=p["global_offset"].flatten(),
    )
    matrix = p["w_perm"].flatten(1)
    return InvertibleSequential(coupling, affine, Permute(channels, matrix.argmax(1)))


def freia_householder(p: Parameters) -> InvertibleModule:
    vectors = p["Vs"].flip(0)
    return assigned(Householder1x1(vectors.shape[1], len(vectors)), vectors=vectors)


LAYERS: dict[str, Callable[[Parameters], InvertibleModule]] = {
    "nflows affine": nflows_affine,
    "nflows affine, mask": nflows_affine_mask,
    "nflows additive": nflows_additive,
    "nflows lu": nflows_lu,
    "nflows actnorm": actnorm,
    "nflows householder": nflows_householder,
    "nflows permutation": lambda p: Permute(4, p["_permutation"]),
    "nflows squeeze": lambda p: PixelUnshuffle(2),
    "nflows leaky relu": lambda p: LeakyReLU(0.2),
    "nflows logit": lambda p: Logit(0.0),
    "nflows spline": nflows_spline,
    "zuko spline": zuko_spline,
    "zuko rotation": zuko_rotation,
    "normflows spline, circular": normflows_spline,
    "normflows coupling, sigmoid": lambda p: normflows_coupling(p, "sigmoid"),
    "normflows coupling, exp": lambda p: normflows_coupling(p, "exp"),
    "normflows coupling, sigmoid_inv": lambda p: normflows_coupling(p, "sigmoid_inv"),
    "normflows 1x1": normflows_1x1,
    "normflows actnorm": normflows_actnorm,
    "normflows swap": lambda p: Permute(5, "swap").inv,
    "normflows squeeze": lambda p: PixelUnshuffle(2),
    "normflows logit": lambda p: Logit(0.05),
    "FrEIA glow": freia_glow,
    "FrEIA glow, 2-D": freia_glow,
    "FrEIA rnvp": freia_rnvp,
    "FrEIA one-sided": freia_one_sided,
    "FrEIA nice": freia_nice,
    "FrEIA gin": lambda p: freia_glow(p, volume_preserving=True),
    "FrEIA all in one": freia_all_in_one,
    "FrEIA all in one, gin": lambda p: freia_all_in_one(p, gin=True),
    "FrEIA actnorm": actnorm,
    "FrEIA householder": freia_householder,
    "FrEIA permutation": lambda p: Permute(4, p["perm"]),
    "FrEIA haar": lambda p: HaarDownsample(),
    "FrEIA squeeze": lambda p: PixelUnshuffle(2),
    "FrEIA sigmoid": lambda p: Logit(0.0).inv,
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Return all numbers."""
    with np.load(PATH) as file:
        return dict(file)


def numbers_of(golden: dict[str, np.ndarray], name: str) -> dict[str, Tensor]:
    """Return the numbers of a case."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): torch.from_numpy(value.copy())
        for key, value in golden.items()
        if key.startswith(prefix)
    }


def error(value: Tensor, reference: Tensor) -> float:
    """Return the largest difference, relative to the largest number or 1."""
    assert value.shape == reference.shape
    size = max(1.0, reference.abs().max().item())
    return (value.double() - reference).abs().max().item() / size


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_another_library_does(golden, name, dtype) -> None:
    numbers = numbers_of(golden, name)
    parameters = {k[2:]: v for k, v in numbers.items() if k.startswith("p.")}
    layer = LAYERS[name](parameters).to(dtype).eval()
    with torch.no_grad():
        y, log_det = layer.forward_and_log_det(numbers["x"].to(dtype))
        back, reverse = layer.inverse_and_log_det(numbers["z"].to(dtype))
    found = {"y": y, "log_det": log_det, "back": back, "reverse": reverse}
    errors = {key: error(value, numbers[key]) for key, value in found.items()}
    assert max(errors.values()) <= TOLERANCE[dtype], errors


def test_every_case_is_compared(golden) -> None:
    names = {key.split("/")[0] for key in golden} - {"versions"}
    assert names == {*LAYERS}
    assert PATH.stat().st_size < 200_000


def test_the_libraries_are_those_that_are_meant(golden) -> None:
    versions = json.loads(str(golden["versions"]))
    versions.pop("torch")
    assert versions == {
        "nflows": "0.14",
        "normflows": "1.7.3",
        "FrEIA": "0.2",
        "zuko": "1.6.0",
    }


def test_zero_log_determinants_are_not_all_there_is(golden) -> None:
    moved = [n for n in LAYERS if numbers_of(golden, n)["log_det"].abs().max() > 0.1]
    assert len(moved) >= 20
    assert all(math.isfinite(v) for n in moved for v in golden[f"{n}/log_det"])
