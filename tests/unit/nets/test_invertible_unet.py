"""The invertible U-Net: any size, skip connections, flat memory, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import (
    AffineCoupling,
    InvertibleSequential,
    OnPart,
    Permute,
    PixelUnshuffle,
)
from invtorch.nets import InvertibleUNet
from invtorch.nets.set_aside import SetAside
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.parts import Averaging
from tests.registry import perturbed
from tests.tolerances import assert_all_equal, assert_equal

RESAMPLING = ("orthogonal", "haar", "pixel_unshuffle")


@st.composite
def networks(draw: st.DrawFn) -> tuple[InvertibleUNet, torch.Tensor]:
    """Draw a network of up to three levels, and a state of any size it takes."""
    dims = draw(st.integers(1, 3))
    stride = draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
    entries, channels = math.prod(stride), [draw(st.integers(2, 4))]
    for _ in range(draw(st.integers(0, 2))):
        if channels[-1] > 1:
            inner = draw(st.integers(1, min(2, channels[-1] - 1)))
            channels.append(entries * inner)
    channels = [c for c in channels if c > 1]  # a coupling needs two
    levels = len(channels)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    net = InvertibleUNet(
        channels,
        blocks=draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels)),
        hidden=2,
        stride=stride,
        dims=dims,
        resampling=draw(st.sampled_from(RESAMPLING)),
        anchors=0,
    ).double()
    least = [s ** (levels - 1) for s in stride]
    space = [draw(st.integers(n, n + 4)) for n in least]
    return net, torch.randn(2, channels[0], *space, dtype=torch.float64)


@given(networks())
def test_it_inverts_states_of_any_size(drawn) -> None:
    net, x = drawn
    y = net(x)
    assert y.shape == x.shape
    assert_equal(net.inverse(y), x)
    assert_equal(net(net.inverse(x)), x)


@given(networks(), st.sampled_from(["forward", "inverse"]))
def test_gradients_are_those_of_plain_autograd(drawn, direction) -> None:
    net, x = drawn
    inputs, found = [x.requires_grad_(), *net.parameters()], {}
    for net.layers.memory in ("invert", "store"):
        loss = getattr(net, direction)(x).sin().sum()
        found[net.layers.memory] = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert_all_equal(found["invert"], found["store"])


@pytest.mark.parametrize("resampling", RESAMPLING)
def test_the_inverse_is_exact_for_15_by_13(resampling) -> None:
    """Other libraries crop and pad here, and lose the border."""
    net = InvertibleUNet([4, 8, 16], hidden=4, resampling=resampling).double()
    x = torch.randn(2, 4, 15, 13, dtype=torch.float64)
    error = (net.inverse(net(x)) - x).abs().max()
    assert error < 1e-13


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.data(),
)
def test_nothing_is_lost_beside_the_coarser_levels(stride, inner, aside, data) -> None:
    layer = SetAside((inner, aside), stride)
    space = [data.draw(st.integers(s, 3 * s + 1)) for s in stride]
    x = torch.randn(2, inner + aside, *space)
    inside, skipped, *border = layer(x)
    multiples = [n - n % s for n, s in zip(space, stride, strict=True)]
    assert inside.shape == (2, inner, *multiples)
    assert skipped.shape == (2, aside, *space)
    assert len(border) == (inside.shape[2:] != x.shape[2:])
    assert torch.equal(layer.inverse((inside, skipped, *border)), x)
    others = torch.randn(2, 3), torch.randn(2, 1, 4)
    assert len(layer((x, *others))) == 4 + len(border)
    back = layer.inverse(layer((x, *others)))
    assert all(map(torch.equal, back, (x, *others)))


def test_skips_reach_the_output_at_full_resolution() -> None:
    """Without blocks, two channels are resampled, and two are left alone."""
    net = InvertibleUNet(
        [4, 8], blocks=1, block=lambda c: Permute(c, range(c))
    ).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="entries 2 to 3 .* layers unchanged"):
        y = perturbed(net, by=1.0)(x)
    assert torch.equal(y[:, 2:], x[:, 2:])
    assert not torch.allclose(y[:, :2], x[:, :2], atol=0.1)


@ON_THE_CPU
def test_memory_does_not_depend_on_the_number_of_blocks() -> None:
    def measured(blocks: int, memory: str) -> tuple[int, int]:
        net = InvertibleUNet(
            [8, 16, 32], blocks=blocks, hidden=8, memory=memory, anchors=0
        )
        x = torch.randn(1, 8, 33, 30, requires_grad=True)

        def step() -> None:
            net(x).square().sum().backward()

        step()  # allocates the gradients
        forward = measure_memory(lambda: net(x)).live
        return forward, measure_memory(step).peak

    few, many = measured(2, "invert"), measured(12, "invert")
    assert many[0] == few[0] == 8 * 33 * 30 * 4
    assert many[1] <= 1.05 * few[1]
    stored = [measured(n, "store")[0] for n in (2, 12)]
    assert stored[1] > 5 * stored[0]


@ON_THE_CPU
def test_the_coarser_levels_keep_one_state() -> None:
    x = torch.randn(1, 8, 32, 32)
    encoder = InvertibleSequential(
        SetAside((4, 4), (2, 2)),
        OnPart(PixelUnshuffle(), 0),
        SetAside((8, 8), (2, 2)),
        OnPart(PixelUnshuffle(), 0),
        anchors=0,
    )
    x.requires_grad_()
    assert measure_memory(lambda: encoder(x)).live == x.nbytes


def test_a_context_reaches_the_blocks_of_the_user() -> None:
    def block(channels: int) -> InvertibleSequential:
        half = channels // 2
        coupling = AffineCoupling(Averaging(half, 2 * (channels - half)))
        return InvertibleSequential(coupling, Permute(channels, "reverse"))

    net = InvertibleUNet([2, 4], block=block)
    x, context = torch.randn(1, 2, 5, 5), torch.randn(1, 1, 5, 5)
    y = net(x, context)
    assert not torch.allclose(y, net(x, 2 * context))
    assert_equal(net.inverse(y, context), x)
    assert_equal(
        net.forward_and_log_det(x, context)[1],
        -net.inverse_and_log_det(y, context)[1],
    )


def test_it_shows_its_layout() -> None:
    shown = repr(InvertibleUNet([6, 8, 16], blocks=[1, 2, 3], hidden=4))
    assert shown.split("\n")[:6] == [
        "InvertibleUNet(",
        "  stride=(2, 2), resampling='orthogonal'",
        "  level 0: 6 channels, 1 + 1 blocks, 2 downsampled, 4 skip",
        "  level 1: 8 channels, 2 + 2 blocks, 4 downsampled, 4 skip",
        "  level 2: 16 channels, 3 + 3 blocks",
        "  (layers): InvertibleSequential(20 layers, 3,420 parameters, "
        "memory='invert', anchors=8, guard='raise'",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 4}, TypeError, "channels is 4, but must be a sequence"),
        ({"channels": []}, ValueError, "channels is empty"),
        ({"channels": [1, 4]}, ValueError, r"channels\[0\] is 1, but .* at least 2"),
        ({"channels": [4, 6]}, ValueError, r"channels\[1\] is 6, .* multiple of 4"),
        ({"channels": [4, 16]}, ValueError, r"channels\[1\] is 16, .* at most 12"),
        ({"channels": [4, 8.5]}, TypeError, r"channels\[1\] is 8.5"),
        ({"blocks": 0}, ValueError, "blocks is 0, but must be at least 1"),
        ({"blocks": [1, 2, 3]}, ValueError, "blocks is .*, but needs 2 entries"),
        ({"hidden": 0}, ValueError, "hidden is 0, but must be at least 1"),
        ({"dims": 4}, ValueError, "dims is 4, but must be 1, 2 or 3"),
        ({"stride": (2, 2, 2)}, ValueError, "stride is .*, but needs 2 entries"),
        ({"stride": 0}, ValueError, "stride is 0, but must be at least 1"),
        ({"resampling": "max"}, ValueError, "resampling is 'max', but must be one of"),
        ({"resampling": "haar", "stride": 3}, ValueError, "Haar wavelets have strides"),
        ({"block": lambda c: torch.nn.Conv2d(c, c, 1)}, TypeError, "Conv2d is not an"),
    ],
)
def test_wrong_arguments(options, error, message) -> None:
    options = {"channels": [4, 8] if options.get("stride") != 3 else [4, 9]} | options
    with pytest.raises(error, match=message):
        InvertibleUNet(**options)


def test_states_that_do_not_fit() -> None:
    net = InvertibleUNet([4, 8, 16], hidden=2)
    with pytest.raises(ValueError, match=r"size \(3, 3\)|size \(1, 1\) is smaller"):
        net(torch.randn(1, 4, 3, 3))
    with pytest.raises(ValueError, match="4 channels"):
        net(torch.randn(1, 5, 8, 8))
    with pytest.raises(ValueError, match="4 channels"):
        net.inverse(torch.randn(1, 5, 8, 8))


def test_a_block_that_changes_the_shape_is_named() -> None:
    net = InvertibleUNet([4, 8], block=lambda _: PixelUnshuffle((1, 2)))
    with pytest.raises(ValueError, match=r"state of shape .* does not fit: this level"):
        net(torch.randn(1, 4, 8, 8))


def test_tensors_that_do_not_fit_the_inverse() -> None:
    layer = SetAside((1, 2), (2,))
    x = torch.randn(1, 3, 5)
    good = layer(x)
    for bad in (good[0], good[:1], good[:2], (good[1], good[0], good[2])):
        with pytest.raises(ValueError, match="do not fit the inverse of SetAside"):
            layer.inverse(bad)
