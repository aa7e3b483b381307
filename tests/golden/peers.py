"""Write what other libraries compute: `python -m tests.golden.peers`.

`make golden` installs them: nflows 0.14, normflows 1.7.3, FrEIA 0.2 and zuko 1.6.0.
Each case has an input, the output and log-determinant of the direction from data to
latent variables, the same for the other direction, and the parameters. All is in double
precision. `test_golden.py` compares the layers of this library with them.
"""

import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.networks import PATH, Mix

warnings.simplefilter("ignore")  # of libraries for an older torch

import FrEIA.modules as fm  # noqa: E402
import normflows as nf  # noqa: E402
import zuko  # noqa: E402
from nflows import transforms as nt  # noqa: E402
from normflows.utils import splines  # noqa: E402

LIBRARIES = ("nflows", "normflows", "FrEIA", "zuko", "torch")
VECTOR, IMAGE = (6,), (4, 2, 4)
BINS, END, BOUND, LEAST = 5, 3.0, 4.0, 1e-3  # of splines
Map = Callable[[Tensor], tuple[Tensor, Any]]


class Peer(NamedTuple):
    """A layer of another library.

    Attributes:
        forward: From data to latent variables.
        inverse: Back.
        shape: The shape of one sample.
        parameters: What the layer of this library needs to be equal.
        data: Makes data of normally distributed numbers.
    """

    forward: Map
    inverse: Map
    shape: tuple[int, ...]
    parameters: dict[str, Tensor]
    data: Callable[[Tensor], Tensor] = lambda x: x


def drawn(module: nn.Module) -> nn.Module:
    """Return the module in double precision, with parameters of no special value."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.4 * torch.randn(parameter.shape))
    return module.double()


def of_nflows(module: nn.Module, shape: tuple[int, ...], **more: Tensor) -> Peer:
    """Return a layer of nflows."""
    return Peer(module, module.inverse, shape, module.state_dict() | more)


def of_normflows(module: nn.Module, shape: tuple[int, ...], **more: Any) -> Peer:
    """Return a layer of normflows, whose `inverse` starts from data."""
    return Peer(module.inverse, module, shape, module.state_dict(), **more)


def of_freia(module: nn.Module, shape: tuple[int, ...], **more: Any) -> Peer:
    """Return a module of FrEIA."""

    def call(x: Tensor, rev: bool) -> tuple[Tensor, Any]:
        (y,), log_det = module([x.clone()], rev=rev)
        return y, log_det

    parameters = module.state_dict()
    return Peer(
        lambda x: call(x, False), lambda y: call(y, True), shape, parameters, **more
    )


def initialized(module: nn.Module, call: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """Initialize from a batch, and return the batch."""
    batch = 3 * torch.randn(7, *IMAGE) + 1
    with torch.no_grad():
        call(batch)
    return {"batch": batch}


# --- nflows ---------------------------------------------------------------------------


def nflows_affine() -> Peer:
    """Return an affine coupling of vectors; the first half conditions."""
    return of_nflows(drawn(nt.AffineCouplingTransform([0] * 3 + [1] * 3, Mix)), VECTOR)


def nflows_affine_mask() -> Peer:
    """Return an affine coupling of images; every second channel conditions."""
    return of_nflows(drawn(nt.AffineCouplingTransform([0, 1, 0, 1], Mix)), IMAGE)


def nflows_additive() -> Peer:
    """Return an additive coupling."""
    return of_nflows(drawn(nt.AdditiveCouplingTransform([0, 0, 1, 1], Mix)), IMAGE)


def nflows_lu() -> Peer:
    """Return an affine map with a matrix in LU form."""
    return of_nflows(drawn(nt.LULinear(6)), VECTOR)


def nflows_actnorm() -> Peer:
    """Return a normalization, initialized from a batch."""
    module = nt.ActNorm(4)
    return of_nflows(module, IMAGE, **initialized(module, module))


def nflows_householder() -> Peer:
    """Return a product of reflections."""
    return of_nflows(drawn(nt.HouseholderSequence(6, 4)), VECTOR)


def nflows_permutation() -> Peer:
    """Return a permutation of channels."""
    return of_nflows(nt.Permutation(torch.randperm(4)), IMAGE)


def nflows_squeeze() -> Peer:
    """Return a change of blocks into channels."""
    return of_nflows(nt.SqueezeTransform(2), IMAGE)


def nflows_leaky_relu() -> Peer:
    """Return a leaky ReLU."""
    return of_nflows(nt.LeakyReLU(0.2), IMAGE)


def nflows_logit() -> Peer:
    """Return a logit function without a margin."""
    peer = of_nflows(nt.Logit(), IMAGE)
    return peer._replace(data=torch.sigmoid, parameters={})


# --- splines --------------------------------------------------------------------------


def knots(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return widths and heights relative to the interval, and inner derivatives.

    They are bounded as those of `SplineCoupling`.
    """
    widths, heights, inner = raw.split([BINS, BINS, raw.shape[-1] - 2 * BINS], -1)
    beta = np.log(BOUND)
    w = LEAST + (1 - LEAST * BINS) * torch.softmax(widths, -1)
    h = w * torch.exp(beta / 2 * torch.tanh(heights / (beta / 2)))
    return w, h / h.sum(-1, keepdim=True), torch.exp(beta * torch.tanh(inner / beta))


class Knots(nn.Module):
    """A network whose spline in nflows has the knots of one in this library."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.mix = Mix(inputs, outputs)
        self.per_entry = 3 * BINS - 1

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Return what nflows makes these knots of."""
        raw = self.mix(x, context)
        w, h, d = knots(raw.view(len(x), -1, self.per_entry))
        return torch.cat([w.log(), h.log(), torch.expm1(d).log()], -1).flatten(1)


def nflows_spline() -> Peer:
    """Return a coupling by splines with linear tails."""
    module = nt.PiecewiseRationalQuadraticCouplingTransform(
        [0, 0, 0, 1, 1, 1],
        Knots,
        num_bins=BINS,
        tails="linear",
        tail_bound=END,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    return of_nflows(drawn(module), VECTOR)


def spline_of(function: Callable[..., Any], per_entry: int, data: Any) -> Peer:
    """Return a coupling that uses a function of another library."""
    mix = drawn(Mix(3, 3 * per_entry))

    def call(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = mix(x[:, :3]).view(len(x), 3, per_entry)
        moved, log_det = function(x[:, 3:], *knots(raw), inverse)
        return torch.cat([x[:, :3], moved], 1), log_det.sum(1)

    parameters = {f"mix.{key}": value for key, value in mix.state_dict().items()}
    forward, inverse = (lambda x: call(x, False)), (lambda y: call(y, True))
    return Peer(forward, inverse, VECTOR, parameters, data)


def normflows_spline_circular() -> Peer:
    """Return a coupling by splines of a circle."""

    def function(x: Tensor, w: Tensor, h: Tensor, d: Tensor, inverse: bool) -> Any:
        return splines.unconstrained_rational_quadratic_spline(
            x,
            w.log(),
            h.log(),
            torch.expm1(d).log(),
            inverse=inverse,
            tails="circular",
            tail_bound=END,
            min_bin_width=0.0,
            min_bin_height=0.0,
            min_derivative=0.0,
        )

    return spline_of(function, 3 * BINS, lambda x: END * torch.tanh(x))


def zuko_spline() -> Peer:
    """Return a coupling by splines of zuko."""
    slope = 1e-12  # so small that it bounds none of these knots
    limit = -np.log(slope)

    def function(x: Tensor, w: Tensor, h: Tensor, d: Tensor, inverse: bool) -> Any:
        w, h, d = w.log(), h.log(), d.log()
        spline = zuko.transforms.MonotonicRQSTransform(
            w / (1 - (2 * w / limit).abs()),
            h / (1 - (2 * h / limit).abs()),
            d / (1 - (d / limit).abs()),
            bound=END,
            slope=slope,
        )
        if inverse:
            y = spline.inv(x)
            return y, -spline.log_abs_det_jacobian(y, x)
        return spline.call_and_ladj(x)

    return spline_of(function, 3 * BINS - 1, lambda x: x)


def zuko_rotation() -> Peer:
    """Return an orthogonal matrix, the exponential of a skew-symmetric one."""
    matrix = torch.randn(6, 6)
    rotation = zuko.transforms.RotationTransform(matrix)

    def inverse(y: Tensor) -> tuple[Tensor, Any]:
        return rotation.inv(y), 0.0

    return Peer(lambda x: (rotation(x), 0.0), inverse, VECTOR, {"matrix": matrix})


# --- normflows ------------------------------------------------------------------------


def normflows_coupling(scale_map: str) -> Peer:
    """Return an affine coupling; a scale and a shift take turns in its network."""
    module = nf.flows.AffineCouplingBlock(Mix(2, 4), scale_map=scale_map)
    return of_normflows(drawn(module), IMAGE)


def normflows_1x1() -> Peer:
    """Return a matrix in LU form with a permutation."""
    module = nf.flows.Invertible1x1Conv(4, use_lu=True)
    module.P.copy_(torch.eye(4)[torch.randperm(4)])
    return of_normflows(drawn(module), IMAGE)


def normflows_actnorm() -> Peer:
    """Return a scale and a shift of each channel, as a flow of normflows."""
    module = nf.flows.ActNorm((4, 1, 1))
    module.data_dep_init_done.fill_(1.0)
    return of_normflows(drawn(module), IMAGE)


def normflows_swap() -> Peer:
    """Return an exchange of unequal halves."""
    return of_normflows(nf.flows.Permute(5, mode="swap"), (5,))


def normflows_squeeze() -> Peer:
    """Return a change of blocks into channels."""
    return of_normflows(nf.flows.Squeeze(), IMAGE)


def normflows_logit() -> Peer:
    """Return a logit function with a margin."""
    return of_normflows(nf.transforms.Logit(0.05), IMAGE, data=torch.sigmoid)


# --- FrEIA ----------------------------------------------------------------------------


def freia_coupling(kind: str, shape: tuple[int, ...], **options: Any) -> Peer:
    """Return a coupling block."""
    module = getattr(fm, kind)([shape], subnet_constructor=Mix, **options)
    return of_freia(drawn(module), shape)


def freia_actnorm() -> Peer:
    """Return a normalization, initialized from a batch."""
    module = fm.ActNorm([IMAGE])
    batch = initialized(module, lambda x: module([x]))
    peer = of_freia(module, IMAGE)
    return peer._replace(parameters=peer.parameters | batch)


def freia_householder() -> Peer:
    """Return a product of reflections."""
    return of_freia(drawn(fm.HouseholderPerm([VECTOR], n_reflections=3)), VECTOR)


def freia_permutation() -> Peer:
    """Return a random permutation of channels."""
    return of_freia(fm.PermuteRandom([IMAGE], seed=1), IMAGE)


def freia_haar() -> Peer:
    """Return the Haar wavelet transform."""
    return of_freia(fm.HaarDownsampling([IMAGE]).double(), IMAGE)


def freia_squeeze() -> Peer:
    """Return a change of blocks into channels."""
    return of_freia(fm.IRevNetDownsampling([IMAGE]).double(), IMAGE)


def freia_sigmoid() -> Peer:
    """Return a sigmoid function."""
    return of_freia(fm.InvertibleSigmoid([VECTOR]), VECTOR)


PEERS: dict[str, Callable[[], Peer]] = {
    "nflows affine": nflows_affine,
    "nflows affine, mask": nflows_affine_mask,
    "nflows additive": nflows_additive,
    "nflows lu": nflows_lu,
    "nflows actnorm": nflows_actnorm,
    "nflows householder": nflows_householder,
    "nflows permutation": nflows_permutation,
    "nflows squeeze": nflows_squeeze,
    "nflows leaky relu": nflows_leaky_relu,
    "nflows logit": nflows_logit,
    "nflows spline": nflows_spline,
    "zuko spline": zuko_spline,
    "zuko rotation": zuko_rotation,
    "normflows spline, circular": normflows_spline_circular,
    "normflows coupling, sigmoid": lambda: normflows_coupling("sigmoid"),
    "normflows coupling, exp": lambda: normflows_coupling("exp"),
    "normflows coupling, sigmoid_inv": lambda: normflows_coupling("sigmoid_inv"),
    "normflows 1x1": normflows_1x1,
    "normflows actnorm": normflows_actnorm,
    "normflows swap": normflows_swap,
    "normflows squeeze": normflows_squeeze,
    "normflows logit": normflows_logit,
    "FrEIA glow": lambda: freia_coupling("GLOWCouplingBlock", VECTOR),
    "FrEIA glow, 2-D": lambda: freia_coupling("GLOWCouplingBlock", IMAGE),
    "FrEIA rnvp": lambda: freia_coupling(
        "RNVPCouplingBlock", VECTOR, clamp=1.5, clamp_activation="TANH"
    ),
    "FrEIA one-sided": lambda: freia_coupling(
        "AffineCouplingOneSided", (5,), clamp_activation="SIGMOID", split_len=2
    ),
    "FrEIA nice": lambda: freia_coupling("NICECouplingBlock", IMAGE),
    "FrEIA gin": lambda: freia_coupling("GINCouplingBlock", VECTOR),
    "FrEIA all in one": lambda: freia_coupling("AllInOneBlock", (5, 3, 4)),
    "FrEIA all in one, gin": lambda: freia_coupling(
        "AllInOneBlock", IMAGE, gin_block=True
    ),
    "FrEIA actnorm": freia_actnorm,
    "FrEIA householder": freia_householder,
    "FrEIA permutation": freia_permutation,
    "FrEIA haar": freia_haar,
    "FrEIA squeeze": freia_squeeze,
    "FrEIA sigmoid": freia_sigmoid,
}


def record(peer: Peer) -> dict[str, Tensor]:
    """Evaluate both directions on a batch of three."""
    batch = 3
    with torch.no_grad():
        x = peer.data(torch.randn(batch, *peer.shape))
        y, log_det = peer.forward(x)
        z, _ = peer.forward(peer.data(torch.randn(batch, *peer.shape)))
        back, reverse = peer.inverse(z)
    numbers = {"x": x, "y": y, "z": z, "back": back}
    for key, value in {"log_det": log_det, "reverse": reverse}.items():
        numbers[key] = torch.as_tensor(value, dtype=x.dtype).expand(batch)
    return numbers | {f"p.{key}": value for key, value in peer.parameters.items()}


def main() -> None:
    """Write the numbers of all cases."""
    torch.set_default_dtype(torch.float64)
    arrays = {"versions": np.array(json.dumps({n: version(n) for n in LIBRARIES}))}
    for i, (name, maker) in enumerate(PEERS.items()):
        torch.manual_seed(i)
        np.random.seed(i)
        numbers = record(maker())
        arrays |= {f"{name}/{key}": value.numpy() for key, value in numbers.items()}
        print(f"{name:32} {sum(v.nbytes for v in numbers.values()):6} bytes")
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.relative_to(Path.cwd())}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
