"""Transforms of other libraries are layers, and layers are transforms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions, nn
from torch.distributions import transforms

from invtorch import AffineCoupling, Householder1x1, InvertibleSequential
from invtorch.flows import (
    FromNflows,
    FromNormflows,
    FromTransform,
    FromZuko,
    ToNflows,
    ToNormflows,
    ToTransform,
    ToZuko,
)
from invtorch.testing import assert_gradients_match, assert_invertible
from tests.parts import Conditioner
from tests.tolerances import assert_equal

SHAPE = (3, 4)


def network(channels: int = 4, dims: int = 0):
    conditioner = Conditioner(channels // 2, channels, dims)
    coupling = AffineCoupling(conditioner, bound=1.5)
    return InvertibleSequential(Householder1x1(channels), coupling).double()


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(0, 1),
    st.booleans(),
)
def test_a_layer_as_transform(seed, batch, dims, inverse) -> None:
    torch.manual_seed(seed)
    event = (4, *(5,) * dims)
    x = torch.randn(*batch, *event, dtype=torch.float64)
    net = network(4, dims)
    transform = ToTransform(net, event_dim=len(event))
    y = net(x.reshape(-1, *event)).reshape(x.shape)
    assert_equal(transform(x), y)
    assert_equal(transform.inv(y), x)
    _, log_det = net.forward_and_log_det(x.reshape(-1, *event))
    expected = log_det.reshape(tuple(batch))
    if inverse:
        assert_equal(transform.inv.log_abs_det_jacobian(y, transform.inv(y)), -expected)
    else:
        assert_equal(transform.log_abs_det_jacobian(x, y), expected)
        known = transform(x)
        assert_equal(transform.log_abs_det_jacobian(x, known), expected)


TRANSFORMS = {
    "sigmoid": (transforms.SigmoidTransform(), lambda x: x),
    "exp": (transforms.ExpTransform(), lambda x: x),
    "affine": (transforms.AffineTransform(1.0, 2.0), lambda x: x),
    "reshape": (transforms.ReshapeTransform((4,), (2, 2)), lambda x: x[:, 0]),
}


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@given(st.integers(0, 2**31))
def test_a_transform_as_layer(name, seed) -> None:
    torch.manual_seed(seed)
    transform, choose = TRANSFORMS[name]
    x = choose(torch.randn(2, *SHAPE, dtype=torch.float64)).requires_grad_()
    layer = FromTransform(transform)
    y, log_det = layer.forward_and_log_det(x)
    assert_equal(layer.inverse(y), x)
    jacobian = torch.autograd.functional.jacobian(layer, x[:1]).view(x[0].numel(), -1)
    assert_equal(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)
    assert_equal(layer.inverse_and_log_det(y)[1], -log_det)


class LikeNflows(nn.Module):
    """Returns pairs as nflows does."""

    def __init__(self, scalar: bool = False):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.scalar = scalar

    def _log_det(self, x):
        total = self.log_scale * x[0].numel()
        return total if self.scalar else total.expand(len(x))

    def forward(self, x, context=None):
        shift = 0 if context is None else context
        return x * self.log_scale.exp() + shift, self._log_det(x)

    def inverse(self, y, context=None):
        shift = 0 if context is None else context
        return (y - shift) * (-self.log_scale).exp(), -self._log_det(y)


@pytest.mark.parametrize("adapter", [FromNflows, FromNormflows])
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_layers_of_other_libraries(adapter, scalar, memory) -> None:
    net = InvertibleSequential(
        *[adapter(LikeNflows(scalar)) for _ in range(4)], anchors=0
    )
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def gradients(strategy):
        net.memory = strategy
        y, log_det = net.forward_and_log_det(x, c)
        return torch.autograd.grad(
            y.square().sum() + log_det.sum(), [x, c, *net.parameters()]
        )

    for a, b in zip(gradients(memory), gradients("store"), strict=True):
        assert_equal(a, b)
    assert_equal(net.inverse(net(x, c), c), x)


def test_directions() -> None:
    foreign = LikeNflows()
    x = torch.randn(2, 3, dtype=torch.float64)
    assert_equal(FromNflows(foreign)(x), foreign(x)[0])
    assert_equal(FromNormflows(foreign)(x), foreign.inverse(x)[0])


@given(st.integers(0, 1), st.booleans(), st.integers(0, 2**31))
def test_layers_in_other_libraries(dims, conditional, seed) -> None:
    torch.manual_seed(seed)
    net, shape = network(4, dims), (4, *(5,) * dims)
    x = torch.randn(3, *shape, dtype=torch.float64)
    context = [torch.randn(3, 1, *shape[1:], dtype=torch.float64)] * conditional
    y, log_det = net.forward_and_log_det(x, *context)
    results = ToNflows(net)(x, *context), ToNormflows(net).inverse(x, *context)
    for result, log_dets in results:
        assert_equal(result, y)
        assert_equal(log_dets, log_det)
    for result, log_dets in (
        ToNflows(net).inverse(y, *context),
        ToNormflows(net)(y, *context),
    ):
        assert_equal(result, x)
        assert_equal(log_dets, -log_det)


@pytest.mark.parametrize(
    ("there", "back"), [(ToNflows, FromNflows), (ToNormflows, FromNormflows)]
)
def test_there_and_back(there, back) -> None:
    net = network()
    x = torch.randn(3, 4, dtype=torch.float64)
    for a, b in zip(
        back(there(net)).forward_and_log_det(x),
        net.forward_and_log_det(x),
        strict=True,
    ):
        assert_equal(a, b)


class LikeZuko(nn.Module):
    """Makes a transform of a parameter and the context, as zuko does."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, c=None):
        return transforms.AffineTransform(0 if c is None else c, self.log_scale.exp())


@given(st.booleans(), st.integers(0, 2**31))
def test_lazy_transforms(conditional, seed) -> None:
    torch.manual_seed(seed)
    layer = FromZuko(LikeZuko())
    x = torch.randn(3, 4, dtype=torch.float64)
    context = [torch.randn(3, 4, dtype=torch.float64).requires_grad_()] * conditional
    y, log_det = layer.forward_and_log_det(x, *context)
    assert_equal(y, x * math.exp(0.3) + sum(context))
    assert_equal(log_det, torch.full((3,), 1.2, dtype=torch.float64))
    assert_invertible(layer, x, *context)
    assert_gradients_match(layer, x, *context)


@given(st.booleans(), st.integers(0, 2**31))
def test_a_layer_as_lazy_transform(conditional, seed) -> None:
    torch.manual_seed(seed)
    net, x = network(), torch.randn(3, 4, dtype=torch.float64)
    context = [torch.randn(3, 1, dtype=torch.float64)] * conditional
    transform = ToZuko(net)(*context)
    y, log_det = net.forward_and_log_det(x, *context)
    assert_equal(transform(x), y)
    assert_equal(transform.log_abs_det_jacobian(x, y), log_det)
    assert_equal(transform.inv(y), x)


class OfOneNumber(transforms.Transform):
    """Returns one log-determinant for a whole batch."""

    bijective = True
    domain = codomain = transforms.constraints.real_vector

    def _call(self, x):
        return 2 * x

    def _inverse(self, y):
        return y / 2

    def log_abs_det_jacobian(self, x, y):  # noqa: ARG002
        return torch.full((1,), 0.6931 * x.shape[-1])


class WrongLogDet(LikeNflows):
    """Returns a log-determinant of each entry."""

    def forward(self, x, *_):
        return x.clone(), torch.zeros_like(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ToTransform(nn.Linear(2, 2)), TypeError, "InvertibleModule"),
        (lambda: ToTransform(network(), event_dim=0), ValueError, "event_dim is 0"),
        (lambda: FromTransform(nn.Linear(2, 2)), TypeError, "must be a"),
        (lambda: FromTransform(transforms.AbsTransform()), ValueError, "bijective"),
        (lambda: FromNflows(nn.Linear(2, 2)), TypeError, "no method `inverse`"),
        (
            lambda: FromNflows(WrongLogDet())(torch.zeros(2, 3)),
            RuntimeError,
            "one real number for each sample",
        ),
        (
            lambda: FromTransform(OfOneNumber()).forward_and_log_det(torch.ones(2, 3)),
            RuntimeError,
            "OfOneNumber returned a log-determinant of shape",
        ),
        (lambda: ToNflows(nn.Linear(2, 2)), TypeError, "InvertibleModule"),
        (lambda: ToZuko(nn.Linear(2, 2)), TypeError, "InvertibleModule"),
        (lambda: FromZuko("spline"), TypeError, "must be an nn.Module"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_distribution_of_torch_can_be_sampled() -> None:
    base = distributions.Independent(
        distributions.Normal(torch.zeros(4, dtype=torch.float64), 1.0), 1
    )
    flow = distributions.TransformedDistribution(base, [ToTransform(network().inv)])
    x = flow.rsample([5])
    assert_equal(flow.log_prob(x), flow.log_prob(x.clone()))
