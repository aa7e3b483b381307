"""The scale of an affine coupling is bounded, and its log-determinant is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import AffineCoupling
from tests.tolerances import assert_equal

scales = st.sampled_from(["tanh", "sigmoid", "exp"])


class Given(nn.Module):
    """A conditioner that returns what it was given."""

    def __init__(self, returned: torch.Tensor) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.returned


@given(scales, st.floats(1.1, 50.0), st.integers(0, 2**32 - 1))
def test_the_scale_stays_within_its_bound(scale, bound, seed) -> None:
    torch.manual_seed(seed)
    a = torch.randn(20, 3, dtype=torch.float64) * 100
    t = torch.randn(20, 3, dtype=torch.float64)
    layer = AffineCoupling(Given(torch.cat([a, t], 1)), scale=scale, bound=bound)
    x = torch.randn(20, 6, dtype=torch.float64)
    y, log_det = layer.forward_and_log_det(x)
    s = (y[:, 3:] - t) / x[:, 3:]
    upper = 1.0 if scale == "sigmoid" else bound
    assert ((s >= 1 / bound - 1e-6) & (s <= upper + 1e-6)).all()
    assert torch.allclose(log_det, s.log().sum(1), atol=1e-6)
    assert torch.equal(y[:, :3], x[:, :3])


def test_without_a_word_of_the_network_the_scale_is_one() -> None:
    x = torch.randn(2, 4)
    for scale in ("tanh", "exp"):
        assert torch.equal(AffineCoupling(Given(torch.zeros(2, 4)), scale=scale)(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "softplus"}, "scale is 'softplus', but must be one of"),
        ({"bound": 1.0}, "bound is 1.0, but must be larger than 1"),
        ({"bound": float("inf")}, "bound is inf, but must be finite with scale='tanh'"),
        ({"split": 0}, "split is 0, but must be at least 1"),
    ],
)
def test_arguments_that_cannot_be(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        AffineCoupling(nn.Linear(2, 4), **options)


def test_a_conditioner_that_returns_too_little() -> None:
    with pytest.raises(ValueError, match=r"returned shape \(1, 2\).* needs \(1, 4\)"):
        AffineCoupling(nn.Linear(2, 2))(torch.randn(1, 4))


@given(scales, st.floats(1.1, 5.0), st.integers(0, 99))
def test_it_is_the_formula(scale, bound, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x1, x2, a, t = torch.randn(4, 2, 3, 5, dtype=torch.float64, generator=generator)

    beta = math.log(bound)
    s = {
        "tanh": torch.exp(beta * torch.tanh(a / beta)),
        "sigmoid": 1 / bound + (1 - 1 / bound) * torch.sigmoid(a + 2),
        "exp": torch.exp(a.clamp(-beta, beta)),
    }[scale]
    layer = AffineCoupling(Given(torch.cat([a, t], dim=1)), scale=scale, bound=bound)
    y, log_det = layer.forward_and_log_det(torch.cat([x1, x2], dim=1))
    assert_equal(y, torch.cat([x1, s * x2 + t], dim=1))
    assert_equal(log_det, s.log().flatten(1).sum(1))


@pytest.mark.parametrize("bound", [1e30, 1e300, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sigmoid_scale_near_zero_has_gradients(bound, dtype) -> None:
    class Small(nn.Module):
        def forward(self, x):
            return torch.cat([1e4 * x, x], 1)

    layer = AffineCoupling(Small(), scale="sigmoid", bound=bound)
    x = torch.tensor([[-0.03, 1.0]], dtype=dtype, requires_grad=True)
    _, log_det = layer.forward_and_log_det(x)
    (grad,) = torch.autograd.grad(log_det.sum(), x)
    assert torch.isfinite(grad).all()
    if bound == float("inf"):
        assert log_det.item() == pytest.approx(-298.0, abs=1e-3)
        assert grad[0, 0].item() == pytest.approx(1e4)
