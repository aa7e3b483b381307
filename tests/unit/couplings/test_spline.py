"""Splines: identity, slopes, tails, and an inverse that stays stable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    InvertibleSequential,
    Permute,
    SplineCoupling,
)
from invtorch.couplings.rational_quadratic import RationalQuadratic
from tests.tolerances import assert_equal, relative_error

tails = st.sampled_from(["linear", "circular"])
bins = st.integers(2, 9)
seeds = st.integers(0, 2**31)


class Given(nn.Module):
    """A conditioner that returns what it was given."""

    def __init__(self, returned: torch.Tensor) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.returned


def layer_of(n: int, kind: str, scale: float, seed: int, dtype, batch=50, **options):
    torch.manual_seed(seed)
    count = 3 * n - (kind == "linear")
    raw = scale * torch.randn(batch, 2 * count, dtype=dtype)
    return SplineCoupling(Given(raw), bins=n, tails=kind, **options)


@given(bins, tails, st.floats(0.1, 20), seeds)
def test_zeros_are_the_identity(n, kind, end, seed) -> None:
    layer = layer_of(n, kind, 0.0, seed, torch.float64, tail_bound=end)
    x = 2 * end * torch.randn(50, 4, dtype=torch.float64)
    y, log_det = layer.forward_and_log_det(x)
    assert_equal(y, x)
    assert log_det.abs().max() < 1e-12


@given(bins, tails, st.floats(1.1, 30), st.sampled_from([0.1, 1, 10, 1e3]), seeds)
def test_slopes_stay_within_their_bounds(n, kind, b, scale, seed) -> None:
    layer = layer_of(n, kind, scale, seed, torch.float64, bound=b)
    raw = layer.conditioner.returned.view(50, 2, -1)
    spline = RationalQuadratic.of(raw, n, 5.0, b, 1e-3)
    for values in (spline.height / spline.width, spline.derivative):
        assert ((values >= 1 / b - 1e-9) & (values <= b + 1e-9)).all()
    x = (6 * torch.randn(50, 4, dtype=torch.float64)).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    assert (slope >= (1 - 1e-9) / b**3).all()
    assert (slope <= max(1, 2 * b**3 / (1 + b**2)) + 1e-9).all()


@given(bins, tails, st.sampled_from([1.0, 3.0, 10.0, 100.0]), seeds)
def test_the_inverse_is_stable_for_any_parameters(n, kind, scale, seed) -> None:
    """An unbounded spline is off by 0.4 at a scale of 3, and fails at 5."""
    for dtype, allowed in ((torch.float32, 2e-4), (torch.float64, 1e-12)):
        layer = layer_of(n, kind, scale, seed, dtype)
        x = 3 * torch.randn(50, 4, dtype=dtype)
        assert relative_error(layer.inverse(layer(x)), x) < allowed
        assert relative_error(layer(layer.inverse(x)), x) < allowed


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@given(
    bins,
    tails,
    st.sampled_from(DTYPES),
    st.integers(-3, 3),
    st.sampled_from(["invert", "store"]),
    st.sampled_from(["forward", "inverse"]),
    seeds,
)
def test_no_slope_is_lost_to_rounding(
    n, kind, dtype, ulps, memory, direction, seed
) -> None:
    """Entries at a knot are in one of the bins beside it, or just beyond."""
    layer = layer_of(n, kind, 1.0, seed, dtype)
    identity = AdditiveCoupling(Given(torch.zeros(50, 2, dtype=dtype)), swap=True)
    net = InvertibleSequential(identity, layer, identity, anchors=0, memory=memory)
    raw = layer.conditioner.returned.view(50, 2, -1)
    raw = raw.to(torch.promote_types(dtype, torch.float32))
    spline = RationalQuadratic.of(raw, n, 5.0, 4.0, 1e-3)
    knots = spline.x if direction == "forward" else spline.y
    chosen = knots[..., torch.randint(0, n + 1, ())].to(dtype)
    end = torch.tensor(float("inf" if ulps > 0 else "-inf"), dtype=dtype)
    for _ in range(abs(ulps)):
        chosen = torch.nextafter(chosen, end)
    x = torch.cat([torch.zeros_like(chosen), chosen], 1).requires_grad_()
    (slope,) = torch.autograd.grad(getattr(net, direction)(x).sum(), x)
    least, most = 2 / (4 + 4**3), 2 * 4**3 / (1 + 4**2)
    if direction == "inverse":
        least, most = 1 / most, 1 / least
    allowed = 1 + 50 * torch.finfo(dtype).eps
    assert (slope >= least / allowed).all()
    assert (slope <= most * allowed).all()


@given(bins, seeds)
def test_circular_tails_continue_periodically(n, seed) -> None:
    layer = layer_of(n, "circular", 1.0, seed, torch.float64, tail_bound=2.0)
    x = 2 * torch.randn(50, 4, dtype=torch.float64)
    turned = torch.cat([x[:, :2], x[:, 2:] + 4.0], 1)
    assert_equal(layer(turned)[:, 2:], layer(x)[:, 2:] + 4.0)
    near = torch.full((50, 4), 2 - 1e-9, dtype=torch.float64).requires_grad_()
    (before,) = torch.autograd.grad(layer(near).sum(), near)
    after = (near.detach() + 2e-9).requires_grad_()
    (behind,) = torch.autograd.grad(layer(after).sum(), after)
    assert (before - behind).abs().max() < 1e-5


@given(bins, seeds)
def test_linear_tails_do_not_change(n, seed) -> None:
    layer = layer_of(n, "linear", 1.0, seed, torch.float64)
    x = torch.tensor([-1e6, -5.0, 5.0, 7.0], dtype=torch.float64).repeat(50, 1)
    x = x.requires_grad_()
    y, log_det = layer.forward_and_log_det(x)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum() + log_det.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_a_deep_network_trains_in_single_precision() -> None:
    layers = [
        layer
        for _ in range(12)
        for layer in (
            SplineCoupling(
                nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 46))
            ),
            Permute(4),
        )
    ]
    net, x = InvertibleSequential(*layers, anchors=0), torch.randn(64, 4)
    found = []
    for net.memory in ("invert", "store"):
        net.zero_grad()
        net(x).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert relative_error(*found) < 1e-4


def test_half_precision_states() -> None:
    layer = layer_of(8, "linear", 1.0, 0, torch.bfloat16)
    x = torch.randn(50, 4).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert relative_error(layer.inverse(y).float(), x.float()) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins is 1, but must be at least 2"),
        ({"tails": "none"}, "tails is 'none', but must be one of"),
        ({"tail_bound": 0.0}, "tail_bound is 0.0, but must be larger than 0"),
        ({"bound": 1.0}, "bound is 1.0, but must be larger than 1"),
        ({"bound": float("inf")}, "bound is inf, but must be finite"),
        ({"min_bin_width": 0.2}, "min_bin_width times bins is 1.6"),
        ({"min_bin_width": 0.0}, "min_bin_width times bins is 0.0"),
        ({"split": (2, 3)}, r"returns 46 channels, but .* needs 69"),
    ],
)
def test_arguments_that_cannot_be(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SplineCoupling(nn.Conv1d(2, 46, 1), **options)


def test_states_and_conditioners_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"Linear returned shape .* needs \(1, 46\)"):
        SplineCoupling(nn.Linear(2, 23))(torch.zeros(1, 4))
    with pytest.raises(TypeError, match="has no splines, which are functions of real"):
        SplineCoupling(nn.Linear(2, 46))(torch.zeros(1, 4, dtype=torch.complex64))


@given(bins, tails, st.sampled_from([0.0, 1.0, 10.0]), st.integers(-120, 120), seeds)
def test_a_spline_of_another_interval_is_the_same_but_for_its_size(
    n, kind, scale, exponent, seed
) -> None:
    """Products with powers of two are exact, so both must agree in all digits."""
    unit = 2.0**exponent
    layer, other = (
        layer_of(n, kind, scale, seed, torch.float32, tail_bound=end)
        for end in (4.0, 4.0 * unit)
    )
    x = (5 * torch.randn(50, 4)).requires_grad_()
    raws = [part.conditioner.returned.requires_grad_() for part in (layer, other)]
    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        y, log_det = getattr(layer, direction)(x)
        scaled, same = getattr(other, direction)(unit * x)
        assert_equal(scaled / unit, y)
        assert_equal(same, log_det, least=1.0)
        expected = torch.autograd.grad(y.sum() + log_det.sum(), [x, raws[0]])
        found = torch.autograd.grad((scaled / unit).sum() + same.sum(), [x, raws[1]])
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
