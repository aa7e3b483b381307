"""What resampling layers promise besides the laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    Flatten,
    HaarDownsample,
    InvertibleSequential,
    OrthogonalDownsample,
    PixelUnshuffle,
)
from invtorch.testing import assert_gradients_match, assert_log_det
from tests.parts import Conditioner
from tests.registry import perturbed
from tests.tolerances import assert_equal

KINDS = {
    "pixel": lambda channels, **options: PixelUnshuffle(**options),
    "haar": lambda channels, **options: HaarDownsample(**options),
    "learned": lambda channels, **options: perturbed(
        OrthogonalDownsample(channels, init="random", **options)
    ),
}


def test_it_is_that_of_pytorch() -> None:
    x = torch.randn(2, 3, 6, 9)
    assert torch.equal(PixelUnshuffle(3)(x), nn.PixelUnshuffle(3)(x))
    y = torch.randn(2, 18, 2, 5)
    assert torch.equal(PixelUnshuffle(3).inverse(y), nn.PixelShuffle(3)(y))


def test_haar_is_the_known_transform() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    a, b, c, d = (
        x[..., ::2, ::2],
        x[..., ::2, 1::2],
        x[..., 1::2, ::2],
        x[..., 1::2, 1::2],
    )
    known = torch.stack(
        [a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=2
    )
    assert_equal(HaarDownsample()(x), known.flatten(1, 2) / 2)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["matrix_exp", "cayley"])
def test_learned_downsampling_begins_as_it_is_told(dims, kind) -> None:
    x = torch.randn(2, 3, *(4,) * dims, dtype=torch.float64)
    options = {"dims": dims, "map": kind}
    haar = OrthogonalDownsample(3, **options)
    assert_equal(haar(x), HaarDownsample(dims=dims)(x))
    shuffle = OrthogonalDownsample(3, init="pixel_shuffle", **options)
    assert_equal(shuffle(x), PixelUnshuffle(dims=dims)(x))
    random = OrthogonalDownsample(3, init="random", **options)
    assert (random(x) - shuffle(x)).abs().max() > 0.1


@st.composite
def paddings(draw: st.DrawFn):
    """Draw strides, and sizes that they do not all divide."""
    dims = draw(st.integers(1, 3))
    strides = draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
    sizes = draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
    return tuple(strides), tuple(sizes)


@given(st.sampled_from(sorted(KINDS)), paddings(), st.integers(0, 2**31))
def test_any_size_is_padded_and_cropped_exactly(kind, drawn, seed) -> None:
    torch.manual_seed(seed)
    stride, size = drawn
    layer = KINDS[kind](2, stride=stride, size=size).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    y = layer(x)
    assert y.shape[2:] == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    assert_equal(layer.inverse(y), x)
    assert_equal(y.norm(), x.norm())
    assert_log_det(layer, x)
    if y.numel() == x.numel():
        assert_gradients_match(layer, x)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**31))
def test_gradients_through_padded_states(kind, seed) -> None:
    torch.manual_seed(seed)
    net = InvertibleSequential(
        KINDS[kind](2, stride=2, size=(3, 5)),
        AdditiveCoupling(Conditioner(4, 4)),
        AdditiveCoupling(Conditioner(4, 4), swap=True),
        anchors=0,
    ).double()
    x = torch.randn(2, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for net.memory in ("invert", "store"):
        loss = net(x).sin().sum()
        found.append(torch.autograd.grad(loss, [x, *net.parameters()]))
    for value, reference in zip(*found, strict=True):
        assert_equal(value, reference)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_would_be_lost_is_not_cropped(kind) -> None:
    layer = KINDS[kind](2, stride=2, size=(3, 5))
    with pytest.raises(RuntimeError, match="crops entries that are not 0"):
        layer.inverse(torch.randn(1, 8, 2, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PixelUnshuffle(0), ValueError, "stride is 0, but must be at least 1"),
        (lambda: PixelUnshuffle((2, 0)), ValueError, "stride is 0, but must be at"),
        (lambda: PixelUnshuffle(2.5), TypeError, "stride is 2.5, but must be a whole"),
        (lambda: PixelUnshuffle(()), ValueError, "must have one number for each axis"),
        (lambda: PixelUnshuffle(2, dims=0), ValueError, "dims is 0, but must be"),
        (lambda: PixelUnshuffle(2, size=(3,)), ValueError, "give one size for each of"),
        (lambda: HaarDownsample(3), ValueError, r"stride is \(3, 3\), but Haar"),
        (lambda: OrthogonalDownsample(0), ValueError, "channels is 0, but must be"),
        (
            lambda: OrthogonalDownsample(2, init="x"),
            ValueError,
            "init is 'x', but must",
        ),
        (lambda: OrthogonalDownsample(2, map="x"), ValueError, "map is 'x', but must"),
        (lambda: Flatten((2, 0)), ValueError, "shape is 0, but must be at least 1"),
        (lambda: Flatten(2.5), TypeError, "shape is 2.5, but must be a whole number"),
    ],
)
def test_arguments_that_cannot_be(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_states_that_do_not_fit(kind) -> None:
    layer, padded = KINDS[kind](2, stride=2), KINDS[kind](2, stride=2, size=(3, 4))
    for shape in ((1, 2, 3, 4), (1, 2, 5, 5)):
        with pytest.raises(
            ValueError, match=r"cannot be divided into blocks of \(2, 2"
        ):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="2 axes of space, of size any"):
        layer(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"2 axes of space, of size \(3, 4\)"):
        padded(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="needs a multiple of 4 channels"):
        layer.inverse(torch.zeros(1, 6, 4, 4))
    with pytest.raises(ValueError, match=r"axes of space, of size \(2, 2\)"):
        padded.inverse(torch.zeros(1, 8, 3, 2))


def test_learned_downsampling_of_other_channels() -> None:
    for call in (OrthogonalDownsample(2), OrthogonalDownsample(2).inverse):
        with pytest.raises(ValueError, match="does not have the 2 channels"):
            call(torch.zeros(1, 12, 4, 4))


def test_flatten_refuses_other_shapes() -> None:
    assert Flatten(6).shape == (6,)
    layer = Flatten((2, 3))
    for call, shape in ((layer, (1, 3, 2)), (layer.inverse, (1, 5))):
        with pytest.raises(ValueError, match="has no samples of shape"):
            call(torch.zeros(shape))
