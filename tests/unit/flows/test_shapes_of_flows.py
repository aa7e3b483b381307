"""A flow is right for every shape, or names what does not fit."""

import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions, nn

from invtorch import Composite, Householder1x1, InvertibleModule, InvertibleSequential
from invtorch.composite import Step
from invtorch.flows import (
    ConditionalNormal,
    Dequantize,
    DiagonalNormal,
    Flow,
    StandardNormal,
)
from tests.tolerances import assert_equal


class Doubled(InvertibleModule):
    """Twice the state, of any shape; the log-determinant may be replaced."""

    def __init__(self, log_det=None):
        super().__init__()
        self.log_det = log_det

    def forward(self, x, *_, **__):
        return 2 * x

    def inverse(self, y, *_, **__):
        return y / 2

    def forward_and_log_det(self, x, *_, **__):
        entries = math.prod(x.shape[1:]) * math.log(2)
        value = torch.full((len(x),), entries, dtype=x.real.dtype)
        return 2 * x, value if self.log_det is None else self.log_det(value)

    def inverse_and_log_det(self, y, *_, **__):
        value = -self.forward_and_log_det(y)[1]
        return y / 2, value


SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
BASES = {
    "torch": lambda shape, events: distributions.Independent(
        distributions.Normal(torch.zeros(shape), 1.0), min(events, len(shape))
    ),
    "standard": lambda shape, _: StandardNormal(shape or (1,)),
    "diagonal": lambda shape, _: DiagonalNormal(shape or (1,)),
}


SIZES = [(), (1,), (3,), (4,), (1, 4), (3, 4), (4, 1), (2, 3, 4)]


@pytest.mark.parametrize("kind", sorted(BASES))
@pytest.mark.parametrize("events", [0, 1, 3])
def test_a_base_has_the_shape_of_the_latent_variable(kind, events) -> None:
    for shape, own in itertools.product(SIZES, SIZES):
        x = torch.randn(3, *shape)
        base = BASES[kind](own, events)
        flow = Flow(Doubled(), base)
        known = tuple(base.sample([2] if kind == "torch" else 2).shape[1:])
        if known != shape:
            with pytest.raises(ValueError, match="give the base the shape that the"):
                flow.log_prob(x)
            continue
        normal = distributions.Normal(0.0, 1.0).log_prob(2 * x).reshape(3, -1).sum(1)
        assert_equal(flow.log_prob(x), normal + math.prod(shape) * math.log(2))
        drawn, log_prob = flow.sample_and_log_prob(2)
        assert drawn.shape == (2, *shape)
        assert_equal(log_prob, flow.log_prob(drawn))


def test_a_distribution_has_one_tensor() -> None:
    class Halves(Doubled):
        def forward_and_log_det(self, x, *_):
            return x.chunk(2, 1), x.new_zeros(len(x))

    flow = Flow(Halves(), distributions.Normal(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match=r"shape \[\(2,\), \(2,\)\]"):
        flow.log_prob(torch.randn(3, 4))


@given(st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_a_conditional_base_has_the_batch_of_the_data(count, contexts, keyword) -> None:
    flow = Flow(Doubled(), ConditionalNormal(nn.Linear(3, 8), [4]))
    x, c = torch.randn(count, 4), torch.randn(contexts, 3)

    def call():
        return flow.log_prob(x, input=c) if keyword else flow.log_prob(x, c)

    if contexts in (1, count):
        assert call().shape == (count,)
        return
    with pytest.raises(ValueError, match=f"for a batch of {contexts}"):
        call()


@given(SHAPES, st.booleans(), st.booleans())
def test_empty_batches(shape, whole, conditional) -> None:
    shape = (*shape, 2)
    dequantize = Dequantize(4) if whole else None
    base = StandardNormal(shape)
    flow = Flow(Doubled(), base, dequantize=dequantize)
    x = torch.zeros(0, *shape)
    context = (torch.zeros(0, 3),) if conditional else ()
    assert flow.log_prob(x, *context).shape == (0,)
    assert flow.bits_per_dim(x, *context).shape == (0,)
    assert flow.to_latent(x, *context).shape == (0, *shape)
    if conditional:
        assert flow.sample(2, *context).shape == (0, 2, *shape)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@given(st.sampled_from([torch.complex64, torch.complex128]), st.booleans())
def test_complex_latent_variables_are_refused(dtype, cast) -> None:
    flow = Flow(Doubled(), StandardNormal([4]))
    flow = flow.to(dtype) if cast else flow
    x = torch.randn(2, 4, dtype=dtype)
    with pytest.raises(TypeError, match="view_as_real"):
        flow.log_prob(x)
    if cast:
        with pytest.raises(TypeError, match="view_as_real"):
            flow.sample(2)


@given(
    st.lists(st.sampled_from(["tensor", "number", "none", "scalar"]), max_size=3),
    st.booleans(),
)
def test_contexts_of_any_kind(kinds, nested) -> None:
    made = {
        "tensor": torch.randn(2, 3),
        "number": 1.5,
        "none": None,
        "scalar": torch.tensor(1.5),
    }
    context = [made[kind] for kind in kinds]
    flow = Flow(Doubled(), StandardNormal([4]))
    x = flow.sample(5, *([context] if nested else context))
    assert x.shape == ((2, 5, 4) if "tensor" in kinds else (5, 4))


class TakesShift(InvertibleModule):
    """Adds the part of the keyword context that its signature names."""

    def forward(self, x, *, shift):
        return x + shift

    def inverse(self, y, *, shift):
        return y - shift

    def forward_and_log_det(self, x, *, shift):
        return x + shift, torch.zeros(len(x))

    def inverse_and_log_det(self, y, *, shift):
        return y - shift, torch.zeros(len(y))


class Mean(nn.Module):
    """Returns a mean, and the logarithm of a deviation of 1."""

    def forward(self, mean):
        return torch.cat([mean, 0 * mean], 1)


@given(
    st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, 3)
)
def test_network_and_base_take_their_keywords(shifted, conditional, wrap, batch, count):
    net = TakesShift() if shifted else Householder1x1(4)
    flow = Flow(
        InvertibleSequential(net) if wrap else net,
        ConditionalNormal(Mean(), [4]) if conditional else StandardNormal([4]),
    )
    given = {"shift": torch.randn(batch, 4)} if shifted else {}
    named = {**given, **({"mean": torch.randn(batch, 4)} if conditional else {})}
    x = torch.randn(batch, 4)
    z = net(x, **given)
    assert_equal(flow.to_latent(x, **named), z)
    epsilon = z - named["mean"] if conditional else z
    expected = StandardNormal([4]).log_prob(epsilon)
    assert_equal(flow.log_prob(x, **named), expected)
    samples, log_prob = flow.sample_and_log_prob(count, **named)
    shape = (batch, count) if named else (count,)
    assert samples.shape == (*shape, 4) == flow.sample(count, **named).shape
    for i in range(count):
        one = (samples[:, i], log_prob[:, i]) if named else (samples, log_prob)
        assert_equal(flow.log_prob(one[0], **named), one[1])
    for call in (flow.log_prob, flow.to_latent, flow.bits_per_dim):
        with pytest.raises(TypeError, match="no module of this Flow takes the keyword"):
            call(x, **named, other=1)
    with pytest.raises(TypeError, match="no module of this Flow takes the keyword"):
        flow.sample(count, **named, other=1)


REPARAMETRIZED = {
    "entries": lambda m, s: distributions.Normal(m, s),
    "independent": lambda m, s: distributions.Independent(
        distributions.Normal(m, s), 1
    ),
    "matrix": lambda m, s: distributions.MultivariateNormal(m, torch.diag(s.square())),
    "transformed": lambda m, s: distributions.TransformedDistribution(
        distributions.Normal(torch.zeros_like(m), 1.0),
        [distributions.AffineTransform(m, s)],
    ),
}


@pytest.mark.parametrize("name", REPARAMETRIZED)
@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_samples_are_differentiable_by_the_base(name, size, count, density, seed):
    """As those of a learned base of this library are."""
    torch.manual_seed(seed)
    mean = torch.randn(size, requires_grad=True)
    deviation = (torch.rand(size) + 0.5).requires_grad_()
    flow = Flow(Doubled(), REPARAMETRIZED[name](mean, deviation))
    x = flow.sample_and_log_prob(count)[0] if density else flow.sample(count)
    found = torch.autograd.grad(x.sum(), [mean, deviation])
    epsilon = ((2 * x - mean) / deviation).detach()
    assert_equal(found[0], torch.full((size,), count / 2))
    assert_equal(found[1], epsilon.sum(0) / 2)


def test_samples_of_a_mixture_have_no_graph() -> None:
    weights = torch.ones(2, requires_grad=True)
    parts = REPARAMETRIZED["independent"](torch.zeros(2, 3), torch.ones(2, 3))
    mixture = distributions.MixtureSameFamily(distributions.Categorical(weights), parts)
    assert not Flow(Doubled(), mixture).sample(4).requires_grad


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_wrong_temperatures(temperature) -> None:
    flow = Flow(Doubled(), StandardNormal([4]))
    with pytest.raises(ValueError, match="but must be at least 0"):
        flow.sample(2, temperature=temperature)


@pytest.mark.parametrize("value", [None, "0.5", [0.5], torch.ones(2), object()])
def test_a_temperature_of_another_kind(value) -> None:
    with pytest.raises(TypeError, match=r"temperature is .*, but must be a number"):
        Flow(Doubled(), StandardNormal([4])).sample(2, temperature=value)


def test_what_is_no_generator_and_data_of_another_kind() -> None:
    flow = Flow(Doubled(), StandardNormal([4]), dequantize=Dequantize(8))
    for call in (flow.log_prob, flow.to_latent, flow.bits_per_dim):
        with pytest.raises(TypeError, match=r"but must be a torch\.Generator"):
            call(torch.ones(2, 4), generator=0)
        for x in ([1, 2], torch.ones(2, 4, dtype=torch.complex64), None):
            with pytest.raises(TypeError, match="must be one tensor of whole numbers"):
                call(x)
    with pytest.raises(TypeError, match=r"but must be a torch\.Generator"):
        flow.sample(2, generator=0)


@pytest.mark.parametrize("returned", [None, (torch.ones(2, 4),), 1.0])
def test_a_conditional_base_needs_one_tensor(returned) -> None:
    class Returns(nn.Module):
        def forward(self, _):
            return returned

    flow = Flow(Doubled(), ConditionalNormal(Returns(), [2]))
    message = f"network Returns returned a {type(returned).__name__}, but must return"
    for call in (lambda c: flow.log_prob(c, c), lambda c: flow.sample(1, c)):
        with pytest.raises(TypeError, match=message):
            call(torch.ones(2, 2))
    with pytest.raises(ValueError, match="a ConditionalNormal has one tensor"):
        ConditionalNormal(Returns(), [[2], [3]])


def test_noise_of_a_generator() -> None:
    flow = Flow(Doubled(), StandardNormal([4]), dequantize=Dequantize(8))
    x = torch.ones(2, 4)
    one, two = (
        flow.to_latent(x, generator=torch.Generator().manual_seed(1)) for _ in "ab"
    )
    assert torch.equal(one, two)


# --- log-determinants of layers -------------------------------------------------------

WRONG = {
    "none": lambda _: None,
    "number": lambda _: 0.0,
    "0-d": torch.sum,
    "one": lambda v: v.sum(0, keepdim=True),
    "column": lambda v: v[:, None],
    "entries": lambda v: v[:, None].expand(-1, 4),
    "twice": lambda v: v.repeat(2),
    "complex": lambda v: v.to(torch.complex64),
}


class Chain(Composite):
    """A composite of users."""

    def __init__(self, *modules):
        super().__init__()
        self.inner = nn.ModuleList(modules)

    def chain(self):
        return [Step(module) for module in self.inner]


@given(
    st.sampled_from(sorted(WRONG)),
    st.integers(0, 3),
    st.sampled_from([InvertibleSequential, Chain]),
    st.sampled_from(["forward_and_log_det", "inverse_and_log_det"]),
    st.booleans(),
    st.booleans(),
)
def test_the_layer_with_a_wrong_log_det_is_named(
    name, place, container, direction, inside, grad
) -> None:
    layers = [Householder1x1(4) for _ in range(3)]
    wrong = Doubled(WRONG[name])
    if name in ("none", "number"):
        wrong.inverse_and_log_det = lambda y: (y / 2, WRONG[name](y))
    layers.insert(place, Chain(wrong) if inside else wrong)
    net = container(*layers)
    named = pytest.raises(
        (RuntimeError, TypeError), match=r"Doubled\)? returned a log-"
    )
    with torch.set_grad_enabled(grad), named:
        getattr(net, direction)(torch.randn(3, 4))


# --- whole numbers --------------------------------------------------------------------


@given(
    st.integers(2, 400),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.floats(0, 1),
)
def test_any_noise_of_dequantization_is_undone(levels, dtype, at) -> None:
    """The largest and the smallest noise, and one in between."""
    x = torch.arange(levels).to(dtype)
    if not torch.equal(x.long(), torch.arange(levels)):  # the data are rounded
        return
    dequantize, eps = Dequantize(levels), torch.finfo(dtype).eps
    for noise in (0.0, eps / 2, min(at, 1 - eps / 2), 1 - eps / 2):
        draw = torch.full_like(x, noise)
        with mock.patch("torch.rand", return_value=draw):
            if levels * eps > 1 / 8:
                with pytest.raises(ValueError, match=f"levels is {levels}, but"):
                    dequantize(x)
                return
            u = dequantize(x)
        assert (u < 1).all()
        assert torch.equal(dequantize.inverse(u), x.long())
