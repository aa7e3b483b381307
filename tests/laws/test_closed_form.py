"""Functions that differentiate themselves do so as autograd does."""

from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.utils.parametrizations import weight_norm

from invtorch import GatedResidualBlock, ReversibleBlock
from invtorch.closed_form.couplings import OrthogonalShift, ReflectedShift
from invtorch.closed_form.protocol import Gradients
from invtorch.closed_form.registry import closed_form
from invtorch.linalg import Reflections, householder_product
from tests.parts import CONVOLUTIONS
from tests.tolerances import assert_all_equal, assert_equal

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU)


@st.composite
def convolutions(draw: st.DrawFn, dims: int) -> nn.Module:
    """Draw a convolution of 4 channels, whatever its options."""
    options = {
        "kernel_size": draw(st.sampled_from([1, 3])),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(2, 3)),
        "dilation": draw(st.integers(1, 2)),
        "groups": draw(st.sampled_from([1, 2])),
        "bias": draw(st.booleans()),
    }
    module = CONVOLUTIONS[dims](4, 4, **options)
    return weight_norm(module) if draw(st.booleans()) else module


@st.composite
def conditioners(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a module whose derivative is known, and what to give it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dims, batch = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    space = [draw(st.integers(3, 6)) for _ in range(dims)]
    if dims and draw(st.booleans()):
        strides = [draw(st.integers(1, 3)) for _ in range(dims)]
        sizes = {"hidden": draw(st.integers(1, 5)), "stride": strides, "dims": dims}
        module: nn.Module = GatedResidualBlock(4, draw(st.integers(1, 3)), **sizes)
    else:
        parts = []
        for _ in range(draw(st.integers(1, 3))):
            linear = nn.Linear(4, 4, bias=draw(st.booleans()))
            parts.append(draw(convolutions(dims)) if dims else linear)
            parts.append(draw(st.sampled_from(ACTIVATIONS))())
        module = nn.Sequential(*parts)
    return module.double(), torch.randn(batch, 4, *space, dtype=torch.float64)


@given(conditioners())
def test_a_closed_form_equals_its_module(drawn) -> None:
    module, x = drawn
    function = closed_form(module, x)
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(function(x), expected)
        assert torch.equal(function.with_pull_back(x)[0], expected)


@given(conditioners(), st.data())
def test_derivatives_by_hand_are_those_of_autograd(drawn, data) -> None:
    module, x = drawn
    x.requires_grad_()
    parameters = [p for p in module.parameters() if data.draw(st.integers(0, 2))]
    y = module(x)
    cotangent = torch.randn_like(y)
    expected = grad(y, [x, *parameters], cotangent)
    with torch.no_grad():
        _, pull = closed_form(module, x).with_pull_back(x)
        into = Gradients(parameters)
        found = [pull(cotangent, into), *map(into.of, parameters)]
        others = {*module.parameters()} - {*parameters}
    assert_all_equal(found, expected)
    assert all(into.of(p) is None for p in others)


@st.composite
def reversible_blocks(draw: st.DrawFn) -> tuple[ReversibleBlock, Tensor]:
    """Draw a block of two networks, or of one twice, and what to give it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dims, first, second = (draw(st.integers(low, 3)) for low in (0, 1, 1))

    def network(inputs: int, outputs: int) -> nn.Module:
        if dims and draw(st.booleans()):
            return GatedResidualBlock(inputs, outputs, hidden=2, dims=dims)
        kind = partial(CONVOLUTIONS[dims], kernel_size=3, padding=1)
        layer = kind(inputs, outputs) if dims else nn.Linear(inputs, outputs)
        return nn.Sequential(layer, draw(st.sampled_from(ACTIVATIONS))())

    f, g = network(second, first), network(first, second)
    if first == second and draw(st.booleans()):
        g = f
    x = torch.randn(2, first + second, *[4] * dims, dtype=torch.float64)
    return ReversibleBlock(f, g, split=first).double(), x.requires_grad_()


@given(reversible_blocks(), st.data(), st.sampled_from([1, -1]))
def test_the_shifts_of_a_reversible_block(drawn, data, sign) -> None:
    layer, x = drawn
    parameters = [p for p in layer.parameters() if data.draw(st.integers(0, 2))]
    y = layer(x) if sign > 0 else layer.inverse(x)
    cotangent = torch.randn_like(y)
    expected = grad(y, [x, *parameters], cotangent)
    function = closed_form(layer, x)
    with torch.no_grad():
        assert torch.equal(function.shifted(x, sign), y)
        for start, end, direction in (x, y, sign), (y, x, -sign):
            before = start.clone()
            found_end, pull = function.with_pull_back(start, direction)
            assert_equal(found_end, end)
            assert torch.equal(start, before)
            into = Gradients(parameters)
            found = [pull(cotangent, x, sign, into), *map(into.of, parameters)]
            assert_all_equal(found, expected)


@given(st.integers(1, 6), st.data(), st.integers(0, 2**31))
def test_the_derivative_of_reflections(channels, data, seed) -> None:
    torch.manual_seed(seed)
    reflections = data.draw(st.integers(1, channels))
    vectors = torch.randn(reflections, channels, dtype=torch.float64)
    vectors.requires_grad_()
    U = householder_product(vectors)
    cotangent = torch.randn_like(U)
    (expected,) = grad(U, vectors, cotangent)
    with torch.no_grad():
        found = Reflections.of(vectors)
        assert torch.equal(found.product(), U)
        given_U = cotangent @ found.W.mT, found.V.mT @ cotangent
        assert_equal(found.gradient(*given_U), expected)


@given(st.integers(2, 9), st.data(), st.sampled_from([1, -1]), st.integers(0, 2**31))
def test_reflections_one_by_one_are_the_product(channels, data, sign, seed) -> None:
    torch.manual_seed(seed)
    reflections = data.draw(st.integers(1, min(channels, 4)))
    vectors = torch.randn(reflections, channels, dtype=torch.float64)
    vectors.requires_grad_()
    half = channels // 2, channels - channels // 2
    conditioner = nn.Sequential(nn.Conv1d(*half, 1), nn.Tanh()).double()
    x = torch.randn(2, channels, 5, dtype=torch.float64, requires_grad=True)
    inputs = [x, vectors, *conditioner.parameters()]
    cotangent = torch.randn_like(x)
    shifts = [
        kind(vectors, closed_form(conditioner, x), "Sequential")
        for kind in (OrthogonalShift, ReflectedShift)
    ]
    values = [shift.shifted(x, sign) for shift in shifts]
    expected, by_autograd = (grad(y, inputs, cotangent) for y in values)
    assert_equal(values[1], values[0])
    assert_all_equal(by_autograd, expected)
    for shift in shifts:
        with torch.no_grad():
            y, pull = shift.with_pull_back(x, sign)
            into = Gradients(inputs)
            found = [pull(cotangent, x, sign, into), *map(into.of, inputs[1:])]
        assert torch.equal(y, shift.shifted(x, sign))
        assert_all_equal(found, expected)
