"""Small inputs, and small parts of a state beside large ones."""

import copy
import math
import statistics

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    DriftError,
    ElementwiseAffine,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    LU1x1,
    Orthogonal1x1,
    OrthogonalCoupling,
    Permute,
    PixelUnshuffle,
)
from tests.compilation import COMPILING, compiled
from tests.devices import ON_THE_CPU
from tests.strategies import costly

pytestmark = [*COMPILING, ON_THE_CPU]
TOLERANCE = math.sqrt(torch.finfo(torch.float32).eps)
scales = st.floats(-30, 30).map(lambda exponent: 10.0**exponent) | st.just(0.0)


def couplings(depth: int) -> list[InvertibleModule]:
    def conditioner() -> nn.Module:
        first, last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        return nn.Sequential(first, nn.SiLU(), last)

    return [OrthogonalCoupling(conditioner(), channels=8) for _ in range(depth)]


def errors(net, x, scale, run=lambda net: net) -> tuple[float, float]:
    """Return the largest relative error of a gradient: rebuilt, and by autograd."""

    def gradients(net, x, run=lambda net: net):
        y = run(net)(x) / max(scale, 1.0)
        wanted = [p for p in net.parameters() if p.requires_grad]
        return torch.autograd.grad(y.square().sum(), wanted)

    def worst(found, truth) -> float:
        pairs = zip(found, truth, strict=True)
        total = math.sqrt(sum(float(t.square().sum()) for t in truth))
        return max(float((f - t).norm() / (t.norm() or total)) for f, t in pairs)

    plain = copy.deepcopy(net)
    plain.memory = "store"
    truth = gradients(copy.deepcopy(plain).double(), x.double())
    return worst(gradients(net, x, run), truth), worst(gradients(plain, x), truth)


def assert_near_autograd(make, shape, scale, seed, **options) -> None:
    """Assert that the median of five networks is within 3 times of autograd.

    Where inputs are large, the derivative of an activation is almost a step, and
    whichever of the two computations falls on the other side is off by more.
    """
    torch.manual_seed(seed)
    above = []
    for _ in range(5):
        x = torch.randn(shape) * scale
        found, plain = errors(make(), x.requires_grad_(**options), scale)
        above.append(found - 3 * plain)
    assert statistics.median(above) <= 0


@costly(6)
@given(scales, st.sampled_from([0, 3, 8]), st.integers(0, 2**32 - 1))
def test_the_scale_of_the_input_does_not_matter(scale, anchors, seed) -> None:
    def network() -> InvertibleSequential:
        return InvertibleSequential(*couplings(12), anchors=anchors)

    assert_near_autograd(network, (2, 8, 6, 6), scale, seed)


# layers that leave the scale as it is, from 2 x 12 x 12 to 8 x 6 x 6 or on 8 x 6 x 6
LEADING = {
    "Permute": lambda: Permute(8, "reverse"),
    "Householder1x1": lambda: Householder1x1(8),
    "Orthogonal1x1": lambda: Orthogonal1x1(8),
    "LU1x1": lambda: LU1x1(8),
    "ElementwiseAffine": lambda: ElementwiseAffine(8),
    "frozen": lambda: Householder1x1(8).requires_grad_(False),
}
leading = st.lists(st.sampled_from(sorted(LEADING)), max_size=4)


@costly(8)
@given(
    *(scales, st.booleans(), leading, st.integers(1, 12), st.sampled_from([0, 3, 8])),
    *(st.booleans(), st.integers(0, 2**32 - 1)),
)
def test_layers_that_leave_the_scale_may_come_first(
    scale, downsamples, names, depth, anchors, needs_grad, seed
) -> None:
    """Their output is as small as the input, and what follows leaps to ones."""

    def network() -> InvertibleSequential:
        first = [PixelUnshuffle(2)] if downsamples else []
        layers = [*first, *(LEADING[name]() for name in names), *couplings(depth)]
        return InvertibleSequential(*layers, anchors=anchors)

    shape = (2, 2, 12, 12) if downsamples else (2, 8, 6, 6)
    options = {"requires_grad": needs_grad}
    assert_near_autograd(network, shape, scale, seed, **options)


def one_first(name: str, depth: int) -> InvertibleSequential:
    """Return couplings after a layer that leaves the scale as it is."""
    return InvertibleSequential(LEADING[name](), *couplings(depth), anchors=0)


@pytest.mark.parametrize("name", sorted(LEADING))
@pytest.mark.parametrize("exponent", [-30, -6, 30])
def test_each_layer_that_leaves_the_scale_may_come_first(name, exponent) -> None:
    scale = 10.0**exponent
    assert_near_autograd(lambda: one_first(name, 3), (2, 8, 6, 6), scale, exponent + 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEADING))
def test_each_layer_that_leaves_the_scale_may_come_first_when_compiled(name) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6) * 1e-6
    found, plain = errors(one_first(name, 2), x, 1e-6, compiled)
    assert found <= 3 * plain


SPLITS = {
    "half": (None, 4, 4),
    "sizes": ((3, 5), 3, 5),
    "mask": (torch.tensor([True, False] * 4), 4, 4),
    "checkerboard": ("checkerboard", 8, 8),
}


class Opaque(nn.Sequential):
    """A chain whose derivative the library does not know."""


def of_one_part(split: str, affine: bool, known: bool, swap: bool) -> InvertibleModule:
    """Return a coupling that leaves one part of 8 channels as it is."""
    where, first, second = SPLITS[split]
    inputs, outputs = (second, first) if swap else (first, second)
    last = nn.Conv2d(6, outputs * (2 if affine else 1), 1)
    with torch.no_grad():
        last.weight.mul_(0.3)
    kind = nn.Sequential if known else Opaque
    network = kind(nn.Conv2d(inputs, 6, 3, padding=1), nn.SiLU(), last)
    coupling = AffineCoupling if affine else AdditiveCoupling
    return coupling(network, split=where, swap=swap)


of_a_network = st.tuples(st.sampled_from(sorted(SPLITS)), st.booleans(), st.booleans())


def of_one_part_first(
    options: tuple[str, bool, bool],
    first: int,
    others: int,
    permuted: bool,
    anchors: int,
) -> InvertibleSequential:
    """Return a chain whose first layers leave one part of the input as it is."""
    layers = [of_one_part(*options, swap=False) for _ in range(first)]
    for i in range(others):
        layers += [Permute(8, "reverse")] if permuted else []
        layers.append(of_one_part(*options, swap=not permuted and i % 2 == 0))
    return InvertibleSequential(*layers, anchors=anchors)


@costly(6)
@given(
    *(st.integers(-30, -4), of_a_network, st.integers(2, 4), st.integers(8, 24)),
    *(st.booleans(), st.sampled_from([0, 3]), st.integers(0, 2**32 - 1)),
)
def test_entries_that_the_first_layers_leave_keep_their_digits(
    exponent, options, first, others, permuted, anchors, seed
) -> None:
    """They are as small as the input, where later layers add ones."""

    def network() -> InvertibleSequential:
        return of_one_part_first(options, first, others, permuted, anchors)

    assert_near_autograd(network, (2, 8, 5, 4), 10.0**exponent, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "permuted"), [("half", True), ("mask", False), ("checkerboard", True)]
)
def test_entries_that_the_first_layers_leave_keep_their_digits_when_compiled(
    split, permuted
) -> None:
    torch.manual_seed(0)
    net = of_one_part_first((split, permuted, True), 2, 3, permuted, 0)
    found, plain = errors(net, torch.randn(2, 8, 5, 4) * 1e-9, 1e-9, compiled)
    assert found <= 3 * plain


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e30])
def test_the_scale_of_the_input_does_not_matter_when_compiled(scale) -> None:
    net = InvertibleSequential(*couplings(3), anchors=0)
    x = torch.randn(2, 8, 6, 6) * scale
    found, plain = errors(net, x, scale, compiled)
    assert found <= 3 * plain


def homogeneous() -> nn.Module:
    """Return a conditioner that leaves the scale as it is."""
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU())


@costly(25)
@given(scales, st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_leap_that_loses_the_digits_of_a_rebuilt_state_raises(
    scale, mixed, seed
) -> None:
    """The first layers leave the scale as it is; the next one leaps to ones."""
    torch.manual_seed(seed)
    layers = [OrthogonalCoupling(homogeneous(), channels=8) for _ in range(mixed)]
    net = InvertibleSequential(*layers, *couplings(4), anchors=0)
    try:
        found, plain = errors(net, torch.randn(2, 8, 6, 6) * scale, scale)
    except DriftError:
        found, plain = (math.inf if scale > 1e-2 else 0.0), 0.0  # raises for a reason
    assert found <= 3 * plain + 10 * TOLERANCE


class OffIn(InvertibleModule):
    """Its inverse is wrong in a part of the state."""

    def __init__(self, part: tuple[slice, ...], wrong: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.part, self.wrong = part, wrong

    def forward(self, x, *_):
        return x * self.scale

    def inverse(self, y, *_):
        x = y / self.scale
        x[self.part] = x[self.part] * (1 + self.wrong)
        return x


IMAGES, SEQUENCES = (4, 32, 5, 5), (4, 24, 32)  # the last axis is that of features
EVERY = slice(None)
PARTS = {
    "sample": (IMAGES, (slice(2, 3),), r"the size of sample 2"),
    "samples": (IMAGES, (slice(1, 3),), r"the size of sample [12]"),
    "channels": (IMAGES, (EVERY, slice(8, 16)), r"channels (8 to 11|12 to 15) \("),
    "both": (
        IMAGES,
        (slice(0, 1), slice(8, 16)),
        r"sample 0, channels (8 to 11|12 to 15) \(",
    ),
    "features": (
        SEQUENCES,
        (EVERY, EVERY, slice(8, 16)),
        r"sample \d, channels \d+ to \d+, entries 8 to 15 of the last axis \(",
    ),
    "positions": (SEQUENCES, (EVERY, slice(6, 12)), r"channels 6 to 11, entries"),
}


@pytest.mark.parametrize("name", PARTS)
@given(
    st.integers(0, 8).map(lambda exponent: 10.0**exponent),
    st.floats(-2, 0).map(lambda exponent: 10.0**exponent),
    st.integers(0, 2**32 - 1),
)
def test_a_loud_part_hides_no_error_of_a_quiet_one(name, ratio, wrong, seed) -> None:
    shape, part, message = PARTS[name]
    # what 16 roundings of the other channels of a sample explain is no error
    eps = torch.finfo(torch.float32).eps
    assume(name.rstrip("s") == "sample" or wrong / ratio > 64 * eps)
    torch.manual_seed(seed)
    x = torch.randn(shape) * ratio
    x[part] /= ratio
    layers = [OffIn(part, 0.0), OffIn(part, wrong), OffIn(part, 0.0)]
    net = InvertibleSequential(*layers, anchors=0)
    with pytest.raises(DriftError, match=r"inverting layer 1 \(OffIn\)") as raised:
        net(x).square().mean().backward()
    raised.match(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "channels", "features"])
def test_a_loud_part_hides_no_error_when_compiled(name) -> None:
    shape, part, _ = PARTS[name]
    x = torch.randn(shape) * 1e3
    x[part] /= 1e3
    net = InvertibleSequential(OffIn(part, 0.0), OffIn(part, 1e-2), anchors=0)
    loss = compiled(net)(x).square().mean()
    with pytest.raises(RuntimeError, match=r"inverting layer 1 \(OffIn\) is off"):
        loss.backward()


class Beside(InvertibleModule):
    """A layer of the first channels; the others are handed on."""

    def __init__(self, layer: InvertibleModule, channels: int) -> None:
        super().__init__()
        self.layer, self.channels = layer, channels

    def forward(self, x, *_):
        own, others = x[:, : self.channels], x[:, self.channels :]
        return torch.cat([self.layer(own), others], 1)

    def inverse(self, y, *_):
        own, others = y[:, : self.channels], y[:, self.channels :]
        return torch.cat([self.layer.inverse(own), others], 1)


class Shrinks(AdditiveCoupling):
    """A coupling that also shrinks the channels, each by another factor."""

    replay = None

    def __init__(self, conditioner: nn.Module, channels: int, least: float) -> None:
        super().__init__(conditioner)
        factors = torch.logspace(math.log10(least), 0, channels).view(-1, 1, 1)
        self.register_buffer("factors", factors.flip(0))

    def forward(self, x, *context):
        return super().forward(x.flip(1), *context) * self.factors

    def inverse(self, y, *context):
        return super().inverse(y / self.factors, *context).flip(1)


@pytest.mark.filterwarnings("ignore:the state grows")
@costly(6)
@given(
    st.integers(1, 6).map(lambda exponent: 10.0**exponent),
    st.floats(0.3, 0.95),
    st.booleans(),
    st.sampled_from([0, 2, 8]),
    st.integers(0, 2**32 - 1),
)
def test_drift_of_a_quiet_part_is_noticed_or_small(
    ratio, least, stream, anchors, seed
) -> None:
    torch.manual_seed(seed)
    layers = [Shrinks(nn.Conv2d(4, 4, 1), 8, least) for _ in range(41)]
    x = torch.randn(3, 8, 5, 5)
    if stream:  # the loud part is other channels, or another sample
        layers = [Beside(layer, 8) for layer in layers]
        x = torch.cat([x, torch.full_like(x, ratio)], 1)
    else:
        x[0] *= ratio
    net = InvertibleSequential(*layers, anchors=anchors)
    quiet = (slice(1, None), slice(8))
    grads = []
    for memory, dtype in (("invert", None), ("store", torch.float64)):
        net, given = net.to(dtype or torch.float32), x.to(dtype or torch.float32)
        net.memory = memory
        try:
            loss = net(given)[quiet].square().sum()
            grads.append(torch.autograd.grad(loss, [*net.parameters()]))
        except DriftError:
            return
    for found, truth in zip(*grads, strict=True):  # the middle ones read rebuilt states
        off = float((found - truth).norm() / truth.norm())
        assert off <= 30 * TOLERANCE
