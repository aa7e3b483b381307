"""Adapters follow the contexts of other libraries, and name what returns no pair."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions, nn

from invtorch import AffineCoupling, Householder1x1, InvertibleSequential, Split
from invtorch.flows import (
    FromNflows,
    FromNormflows,
    FromTransform,
    ToTransform,
    ToZuko,
)
from tests.tolerances import assert_equal


class Conditional(nn.Module):
    """A conditioner with a vector as context."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(5, 4)

    def forward(self, x, c):
        return torch.tanh(self.mix(torch.cat([x, c], 1)))


def network():
    layers = [Householder1x1(4), AffineCoupling(Conditional())] * 2
    return InvertibleSequential(*layers).double()


STATES = [(), (1,), (5,), (6, 5)]
CONTEXTS = [(), (1,), (5,), (6, 1), (6, 5)]
BATCHES = st.tuples(st.sampled_from(STATES), st.sampled_from(CONTEXTS))


@given(st.integers(0, 2**31), BATCHES)
def test_contexts_are_broadcast_as_in_zuko(seed, batches) -> None:
    torch.manual_seed(seed)
    batch, own = batches
    net = network()
    x = torch.randn(*batch, 4, dtype=torch.float64)
    c = torch.randn(*own, 3, dtype=torch.float64)
    whole = torch.broadcast_shapes(batch, own if own != (1,) else ())
    one = c if own != (1,) else c[0]
    flat = [t.expand(*whole, t.shape[-1]).reshape(-1, t.shape[-1]) for t in (x, one)]
    y, log_det = net.forward_and_log_det(*flat)
    transform = ToZuko(net)(c)
    assert_equal(transform(x), y.reshape(*whole, 4))
    assert_equal(transform.log_abs_det_jacobian(x, transform(x)), log_det.view(whole))
    assert_equal(transform.inv(transform(x)), x.expand(*whole, 4))


@given(st.integers(0, 2**31), st.lists(st.integers(1, 3), max_size=2), st.booleans())
def test_samples_with_a_context(seed, shape, zuko) -> None:
    torch.manual_seed(seed)
    net, c = network(), torch.randn(5, 3, dtype=torch.float64)
    inverse = ToZuko(net)(c).inv if zuko else ToTransform(net.inv, c)
    zeros = torch.zeros(4, dtype=torch.float64)
    base = distributions.Independent(distributions.Normal(zeros, 1.0), 1)
    flow = distributions.TransformedDistribution(base.expand((5,)), [inverse])
    x = flow.sample(torch.Size(shape))
    assert x.shape == (*shape, 5, 4)
    z, log_det = net.forward_and_log_det(x.reshape(-1, 4), c.repeat(x.numel() // 20, 1))
    expected = base.log_prob(z) + log_det
    assert_equal(flow.log_prob(x), expected.view(x.shape[:-1]))


def test_context_dim() -> None:
    class Shift(nn.Module):
        def forward(self, x, c):
            return torch.stack([x, c.mean((1, 2, 3))[:, None].expand_as(x)], 1).flatten(
                1
            )

    net = InvertibleSequential(AffineCoupling(Shift())).double()
    x = torch.randn(6, 5, 2, dtype=torch.float64)
    c = torch.randn(5, 1, 3, 3, dtype=torch.float64)
    y = ToZuko(net, context_dim=3)(c)(x)
    assert_equal(y[0], net(x[0], c))
    assert_equal(ToTransform(net, c)(x), y)


def test_transforms_of_other_shapes() -> None:
    with pytest.raises(ValueError, match="event_dim is 3"):
        ToTransform(Householder1x1(4), event_dim=3)(torch.randn(2, 4))
    with pytest.raises(TypeError, match="Split returned a tuple"):
        ToTransform(Split(1))(torch.randn(2, 4))


RETURNED = {
    "tensor": (lambda x: x, "a tensor of shape"),
    "none": (lambda _: None, "a NoneType"),
    "one": (lambda x: (x,), "a tuple of 1"),
    "three": (lambda x: (x, x[:, 0], None), "a tuple of 3"),
    "tensors": (lambda x: ((x, x), x[:, 0]), "a tuple of 2 for a batch"),
    "batch": (lambda x: (x[:1], x[:1, 0]), "a tensor of shape"),
    "no log-det": (lambda x: (x, None), "log-determinant that is a NoneType"),
    "text": (lambda x: (x, "a"), "log-determinant that is a str"),
    "column": (lambda x: (x, x[:, :1]), "log-determinant of shape"),
    "entries": (lambda x: (x, torch.cat([x, x], 1)), "log-determinant of shape"),
    "twice": (lambda x: (x, x[:, 0].repeat(2)), "log-determinant of shape"),
    "complex": (lambda x: (x, x[:, 0].cfloat()), "log-determinant of shape"),
}


class Foreign(nn.Module):
    """Returns what it is told to."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def forward(self, x, *_):
        return self.returned(x)

    inverse = forward


@pytest.mark.parametrize("name", sorted(RETURNED))
@pytest.mark.parametrize("adapter", [FromNflows, FromNormflows])
@given(st.integers(2, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_what_is_no_pair_is_refused(name, adapter, batch, size, log_det, inverse):
    returned, message = RETURNED[name]
    layer = adapter(Foreign(returned))
    net = InvertibleSequential(layer)
    direction = "inverse" if inverse else "forward"
    function = getattr(net, f"{direction}_and_log_det" if log_det else direction)
    with pytest.raises((RuntimeError, TypeError), match=f"Foreign returned.*{message}"):
        function(torch.randn(batch, size))


@pytest.mark.parametrize("value", [None, 0.0, torch.zeros(()), torch.zeros(7)])
def test_a_transform_with_a_wrong_log_det(value) -> None:
    class Wrong(distributions.transforms.SigmoidTransform):
        def log_abs_det_jacobian(self, *_):
            return value

    with pytest.raises((RuntimeError, TypeError), match="Wrong returned a log-"):
        FromTransform(Wrong()).forward_and_log_det(torch.randn(2, 3))
