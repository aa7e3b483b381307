"""On a fixed-point grid nothing is rounded: states come back bit by bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import AdditiveCoupling, InvertibleSequential, VolumePreserving
from invtorch.grid import snap
from tests.parts import Conditioner

GRID = 2.0**-18


class Reverse(VolumePreserving):
    """Let the halves take turns; an order of channels is always exact."""

    def forward(self, x, *_):
        return x.flip(1)

    def inverse(self, y, *_):
        return y.flip(1)


def small(inputs: int, outputs: int) -> nn.Module:
    conditioner = Conditioner(inputs, outputs)
    with torch.no_grad():
        for parameter in conditioner.second.parameters():
            parameter.mul_(0.3)
    return conditioner


def net(couplings: int, grid: float = GRID, **options) -> InvertibleSequential:
    layers = []
    for _ in range(couplings):
        layers += [AdditiveCoupling(small(2, 2), grid=grid), Reverse()]
    return InvertibleSequential(*layers, anchors=0, **options)


def gradients(container, x):
    x = x.detach().requires_grad_()
    container.zero_grad()
    container(x).square().mean().backward()
    return [x.grad, *(p.grad for p in container.parameters())]


@pytest.fixture
def x():
    return snap(torch.randn(2, 4, 6, 5), GRID)


def test_a_thousand_layers_and_back(x) -> None:
    deep = net(1000)
    with torch.no_grad():
        y = deep(x)
        assert not torch.allclose(y, x, atol=0.1)
        assert torch.equal(deep.inverse(y), x)
        assert torch.equal(deep(deep.inverse(x)), x)


@pytest.mark.slow
def test_gradients_are_those_of_checkpointing_bit_by_bit(x) -> None:
    deep = net(300)
    inverted = gradients(deep, x)
    deep.memory = "checkpoint"
    for one, other in zip(inverted, gradients(deep, x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "strided"])
def test_the_layout_of_the_input_does_not_matter(x, layout) -> None:
    deep = net(20)
    x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "expanded": x[:1].expand(2, 4, 6, 5),
        "strided": x.transpose(2, 3),
    }[layout]
    assert torch.equal(deep.inverse(deep(x)), x)
    inverted = gradients(deep, x)
    deep.memory = "checkpoint"
    assert all(map(torch.equal, inverted, gradients(deep, x)))


class Shift(nn.Module):
    """A conditioner that returns what it was given, whatever the state."""

    def __init__(self, shift: torch.Tensor) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.shift


FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def finest(dtype: torch.dtype) -> float:
    """Return the spacing of the denormals, the finest grid there is."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def spacings(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Draw spacings from that of the denormals to one the range of which overflows."""
    lowest = round(math.log2(finest(dtype)))
    highest = round(math.log2(torch.finfo(dtype).max * torch.finfo(dtype).eps))
    exponents = st.integers(lowest, highest) | st.sampled_from([lowest, 0])
    return exponents.map(lambda exponent: 2.0**exponent)


def near(*ends: int) -> st.SearchStrategy[int]:
    """Draw whole numbers of either sign at, and next to, some ends."""
    around = st.integers(-3, 3)
    near_end = st.builds(lambda end, by: end + by, st.sampled_from(ends), around)
    return st.builds(lambda sign, n: sign * n, st.sampled_from([-1, 1]), near_end)


@given(st.sampled_from(FLOATS), st.data())
def test_accepted_states_are_rebuilt_at_the_ends_of_the_range(dtype, data) -> None:
    grid = data.draw(spacings(dtype))
    steps = int(2 / torch.finfo(dtype).eps)
    counts = near(0, steps // 2, steps) | st.integers(-steps, steps)
    x1, x2, shift = data.draw(st.tuples(counts, counts, counts))

    def on_grid(*values: int) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64).mul(grid).to(dtype)

    given, layer = on_grid(x1, x2), AdditiveCoupling(Shift(on_grid(shift)), grid=grid)
    shift = layer.conditioner.shift.item() / grid  # rounded beyond the range
    for forth, back, there in (
        (layer, layer.inverse, x2 + shift),
        (layer.inverse, layer, x2 - shift),
    ):
        finite = on_grid(x1, x2, there).isfinite().all()
        within = max(abs(x1), abs(x2), abs(there)) < steps and finite
        if not within:
            with pytest.raises(RuntimeError, match="counts exactly only below"):
                forth(given)
        else:
            assert torch.equal(forth(given), on_grid(x1, there))
            assert torch.equal(back(forth(given)), given)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_sum_rounded_to_the_end_of_the_range_is_refused(dtype, sign) -> None:
    """2^24 - 1 + 2 is rounded to 2^24, from which there is no way back."""
    steps = int(2 / torch.finfo(dtype).eps)
    layer = AdditiveCoupling(Shift(torch.tensor([[2 * sign]], dtype=dtype)), grid=1.0)
    state = torch.tensor([[0, (steps - 1) * sign]], dtype=dtype)
    with pytest.raises(RuntimeError, match="counts exactly only below"):
        layer(state)
    layer.conditioner.shift.copy_(-state[:, 1:])
    assert torch.equal(layer.inverse(layer(state)), state)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_number_far_below_the_spacing_is_off_the_grid(dtype) -> None:
    layer = AdditiveCoupling(Shift(torch.zeros(1, 1, dtype=dtype)), grid=4.0)
    with pytest.raises(RuntimeError, match="not on the grid"):
        layer(torch.tensor([[0, finest(dtype)]], dtype=torch.float64).to(dtype))


def test_denormals_lie_on_a_grid_of_their_own() -> None:
    tiny = torch.tensor([[1.0, -3.0, 5.0, -7.0]]) * 2.0**-149
    layer = AdditiveCoupling(nn.Linear(2, 2), grid=2.0**-149)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.conditioner.bias.fill_(2.0**-148)
        y = layer(tiny)
        assert not torch.equal(y, tiny)
        assert torch.equal(layer.inverse(y), tiny)


def test_denormals_off_the_grid_are_refused() -> None:
    layer = AdditiveCoupling(nn.Linear(2, 2), grid=GRID)
    with pytest.raises(RuntimeError, match=r"not on the grid of 3.8.*snap the input"):
        layer(torch.full((1, 4), 1e-40))


def test_a_state_off_the_grid_is_refused(x) -> None:
    with pytest.raises(RuntimeError, match="not on the grid") as caught:
        net(2)(x + GRID / 3)
    assert "layer 0 (AdditiveCoupling)" in caught.value.__notes__[0]


def test_a_state_beyond_the_range_is_refused(x) -> None:
    deep = net(20, grid=2.0**-24)
    with pytest.raises(RuntimeError, match=r"reaches \d.*counts exactly only below 1:"):
        deep(snap(x * 2, 2.0**-24))


@pytest.mark.parametrize("grid", [0.3, 0.0, -0.5, 3.0, math.inf, math.nan])
def test_a_spacing_that_is_no_power_of_two(grid) -> None:
    with pytest.raises(ValueError, match="must be a power of two"):
        AdditiveCoupling(nn.Linear(2, 2), grid=grid)


@given(st.integers(-20, 5), st.lists(st.floats(-50, 50), min_size=1))
def test_snapping_is_to_the_nearest_point(exponent, values) -> None:
    spacing = 2.0**exponent
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    snapped = snap(x, spacing)
    assert ((snapped - x).abs() <= spacing / 2).all()
    assert torch.equal(snap(snapped, spacing), snapped)
    (gradient,) = torch.autograd.grad(snapped.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
