"""Elementwise layers: formula, bounds of the slopes, and errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import LeakyReLU, LeakyTanh, Logit, PixelUnshuffle
from invtorch.testing import assert_log_det
from tests.tolerances import assert_equal

LOW = torch.float32, torch.bfloat16, torch.float16
numbers = torch.linspace(-9, 9, 101, dtype=torch.float64)[None]


@given(st.floats(0.01, 3))
def test_leaky_relu(slope) -> None:
    expected = torch.nn.functional.leaky_relu(numbers, slope)
    assert_equal(LeakyReLU(slope)(numbers), expected)
    assert_log_det(LeakyReLU(slope), numbers + 0.01)


@given(st.floats(1.01, 100))
def test_leaky_tanh_is_smooth_and_its_slope_bounded(bound) -> None:
    layer = LeakyTanh(bound)
    end = math.acosh(math.sqrt(bound))
    inside = numbers[numbers.abs() < end][None]
    assert_equal(layer(inside), inside.tanh())
    x = numbers.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    assert (slope <= 1 + 1e-12).all()
    assert (slope >= 1 / bound - 1e-12).all()
    near = torch.tensor([[end - 1e-9, end + 1e-9]], dtype=torch.float64)
    near.requires_grad_()
    (slopes,) = torch.autograd.grad(layer(near).sum(), near)
    assert abs(slopes[0, 0] - slopes[0, 1]) < 1e-6
    assert_equal(layer.inverse(layer(numbers)), numbers)
    assert_log_det(layer, numbers)


@given(st.floats(0.1, 300), st.sampled_from([torch.float64, *LOW]), st.floats(-3, 3))
def test_leaky_tanh_has_a_finite_inverse(exponent, dtype, size) -> None:
    bound = 10.0 ** min(exponent, 0.9 * math.log10(torch.finfo(dtype).max))
    layer, x = LeakyTanh(bound), (10**size * numbers).to(dtype)
    y = layer(x)
    back, eps = layer.inverse(y), torch.finfo(dtype).eps
    allowed = 8 * eps * (1 + x.double().abs() + bound * y.double().abs())
    assert torch.isfinite(back).all()
    assert ((back.double() - x.double()).abs() <= allowed).all()
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer.inverse(y).sum(), y)
    assert torch.isfinite(slope).all()
    assert (slope.double() <= (1 + 64 * eps) * bound).all()


def test_the_log_determinant_of_leaky_tanh_has_two_derivatives_at_zero() -> None:
    x = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    _, log_det = LeakyTanh().forward_and_log_det(x)
    (first,) = torch.autograd.grad(log_det.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_equal(second, torch.full_like(x, -2))  # of -2 ln cosh


def test_the_log_determinant_of_logit_keeps_its_digits() -> None:
    y = torch.tensor([[19.0], [21.0], [25.0], [-30.0], [300.0]], dtype=torch.float64)
    _, log_det = Logit(0.0).inverse_and_log_det(y)
    size = y[:, 0].abs()
    exact = -size - 2 * torch.log1p((-size).exp())
    assert (log_det - exact).abs().max() < 1e-15 * 300


@given(st.floats(0, 0.4))
def test_logit(alpha) -> None:
    x = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)[None]
    assert_equal(Logit(alpha)(x), torch.logit(alpha + (1 - 2 * alpha) * x), least=1.0)
    assert_log_det(Logit(alpha), x)


def test_logit_of_what_has_no_image() -> None:
    for alpha, value in ((0.0, 0.0), (0.0, 1.0), (0.05, 255.0), (0.05, float("nan"))):
        with pytest.raises(RuntimeError, match="got entries that are not between"):
            Logit(alpha)(torch.tensor([[value]]))
    assert torch.isfinite(Logit(0.05)(torch.tensor([[0.0, 1.0]]))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeakyReLU(0.0), "negative_slope is 0.0, but must be larger"),
        (lambda: LeakyReLU(-1.0), "negative_slope is -1.0, but must be larger"),
        (lambda: LeakyTanh(1.0), "bound is 1.0, but must be larger than 1"),
        (lambda: LeakyTanh(float("inf")), "bound is inf, but must be finite"),
        (lambda: Logit(0.5), "alpha is 0.5, but must be at least 0 and less"),
        (lambda: Logit(-0.1), "alpha is -0.1, but must be at least 0 and less"),
    ],
)
def test_arguments_that_cannot_be(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_shapes_on_meta() -> None:
    x = torch.empty(2, 3, device="meta")
    assert Logit()(x).shape == x.shape
    y = torch.empty(2, 8, 3, 3, device="meta")
    assert PixelUnshuffle(2, size=(5, 6)).inverse(y).shape == (2, 2, 5, 6)
