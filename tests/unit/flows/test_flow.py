"""Flows have the density of the change of variables, and sample from it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributions, nn
from torch.autograd.functional import jacobian

from invtorch import (
    AffineCoupling,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    Split,
)
from invtorch.flows import (
    ConditionalNormal,
    Dequantize,
    DiagonalNormal,
    Flow,
    StandardNormal,
    ToTransform,
)
from tests.parts import Conditioner, Scale
from tests.tolerances import assert_equal

DIM = 4


def network(depth: int = 3, **options) -> InvertibleSequential:
    steps = [
        module
        for _ in range(depth)
        for module in (
            Householder1x1(DIM, reflections=2),
            AffineCoupling(Conditioner(DIM // 2, DIM, dims=0), bound=1.5),
        )
    ]
    return InvertibleSequential(*steps, **options).double()


def data(count: int = 3) -> Tensor:
    return torch.randn(count, DIM, dtype=torch.float64)


def standard(shape=(DIM,)):
    return StandardNormal(shape).double()


@given(st.integers(0, 2**31), st.integers(1, 5), st.booleans())
def test_density_of_the_change_of_variables(seed, count, conditional) -> None:
    torch.manual_seed(seed)
    context = (torch.randn(count, 1, dtype=torch.float64),) if conditional else ()
    flow, x = Flow(network(), standard()), data(count)
    expected = []
    for i in range(count):
        one = [c[i : i + 1] for c in context]

        def transform(point, one=one):
            return flow.transform(point, *one)

        z = transform(x[i : i + 1])
        derivative = jacobian(transform, x[i : i + 1]).view(DIM, DIM)
        normal = distributions.Normal(0.0, 1.0).log_prob(z).sum()
        expected.append(normal + torch.linalg.slogdet(derivative).logabsdet)
    assert_equal(flow.log_prob(x, *context), torch.stack(expected))
    bits = flow.bits_per_dim(x, *context)
    assert_equal(bits, -torch.stack(expected) / DIM / math.log(2))


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 3))
def test_density_of_samples_is_log_prob(seed, count, batch) -> None:
    torch.manual_seed(seed)
    context = (torch.randn(batch, 1, dtype=torch.float64),) if batch else ()
    flow = Flow(network(), standard())
    x, log_prob = flow.sample_and_log_prob(count, *context)
    assert x.shape == (*([batch] if batch else []), count, DIM)
    flat = [c.repeat_interleave(count, 0) for c in context]
    assert_equal(log_prob.flatten(), flow.log_prob(x.view(-1, DIM), *flat))
    assert_equal(
        flow.transform.inverse(flow.to_latent(x.view(-1, DIM), *flat), *flat),
        x.view(-1, DIM),
    )


@given(st.integers(0, 2**31), st.sampled_from(["invert", "checkpoint"]))
def test_likelihood_gradients_equal_plain_autograd(seed, memory) -> None:
    torch.manual_seed(seed)
    flow, x = Flow(network(12, anchors=0), DiagonalNormal([DIM]).double()), data()

    def gradients(strategy):
        flow.transform.memory = strategy
        return torch.autograd.grad(flow.log_prob(x).mean(), [*flow.parameters()])

    for a, b in zip(gradients(memory), gradients("store"), strict=True):
        assert_equal(a, b)


@given(st.integers(0, 2**31), st.floats(0, 2))
def test_temperature_scales_the_latent_variable(seed, temperature) -> None:
    flow = Flow(network(), standard())
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    x = flow.sample(5, temperature=temperature, generator=generators[0])
    usual = flow.sample(5, generator=generators[1])
    assert_equal(flow.to_latent(x), temperature * flow.to_latent(usual), least=1.0)


BASES = {
    "standard": lambda: standard(),
    "diagonal": lambda: DiagonalNormal([DIM]).double(),
    "torch": lambda: distributions.Independent(
        distributions.Normal(torch.zeros(DIM, dtype=torch.float64), 1.0), 1
    ),
    "torch, entry by entry": lambda: distributions.Normal(
        torch.zeros(DIM, dtype=torch.float64), 1.0
    ),
}


@pytest.mark.parametrize("name", sorted(BASES))
def test_any_base_has_the_same_density(name) -> None:
    x = data()
    transform = network()
    expected = Flow(transform, standard()).log_prob(x)
    flow = Flow(transform, BASES[name]())
    assert_equal(flow.log_prob(x), expected)
    assert flow.sample(7).shape == (7, DIM)


def test_log_prob_equals_transformed_distribution() -> None:
    x, net = data(), network()
    base = BASES["torch"]()
    other = distributions.TransformedDistribution(base, [ToTransform(net.inv)])
    assert_equal(Flow(net, base).log_prob(x), other.log_prob(x))


def test_conditional_base() -> None:
    base = ConditionalNormal(nn.Linear(2, 2 * DIM), [DIM]).double()
    c = torch.randn(3, 2, dtype=torch.float64)
    mean, log_std = base.network(c).chunk(2, 1)
    x = data()
    expected = distributions.Normal(mean, log_std.exp()).log_prob(x).sum(1)
    assert_equal(base.log_prob(x, c), expected)
    samples = base.sample(20_000, c[:1], generator=torch.Generator().manual_seed(0))
    # 20,000 samples: the standard error is 1/141 of a standard deviation
    assert ((samples.mean(0) - mean[0]).abs() < 0.05 * log_std[0].exp()).all()


def test_latent_variable_of_several_tensors() -> None:
    net = InvertibleSequential(Scale(DIM, 0), Split(1)).double()
    flow = Flow(net, StandardNormal([[1], [DIM - 1]]).double())
    alone = Flow(InvertibleSequential(net[0]), standard())
    x = data()
    assert_equal(flow.log_prob(x), alone.log_prob(x))
    assert flow.sample(6).shape == (6, DIM)


@pytest.mark.slow
def test_a_trained_flow_has_the_density_of_the_data() -> None:
    """The likelihood of a flow that can be the truth reaches that of the truth."""
    torch.manual_seed(0)
    truth = distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0, 0.5, 0.0]).double(),
        scale_tril=torch.randn(DIM, DIM).double().tril() + 2 * torch.eye(DIM).double(),
    )
    flow = Flow(network(6), DiagonalNormal([DIM]).double())
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        (-flow.log_prob(truth.sample([256])).mean()).backward()
        optimizer.step()
    x = truth.sample([4096])
    difference = (truth.log_prob(x) - flow.log_prob(x)).mean().item()
    assert -0.02 < difference < 0.25


# --- whole numbers --------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(2, 300), st.integers(1, 4))
def test_dequantization_is_undone(seed, levels, count) -> None:
    torch.manual_seed(seed)
    x = torch.randint(levels, (count, 3))
    dequantize = Dequantize(levels)
    u = dequantize(x)
    assert ((u >= 0) & (u < 1)).all()
    assert torch.equal(dequantize.inverse(u), x)


class Uniform(InvertibleModule):
    """The identity: the density of the latent variable is that of the data."""

    def forward(self, x):
        return x.clone()

    def inverse(self, y):
        return y.clone()

    def forward_and_log_det(self, x):
        return x.clone(), x.new_zeros(len(x))

    def inverse_and_log_det(self, y):
        return y.clone(), y.new_zeros(len(y))


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_uniform_data_need_the_logarithm_of_the_levels(levels) -> None:
    base = distributions.Uniform(torch.zeros(3), torch.ones(3))
    flow = Flow(Uniform(), base, dequantize=Dequantize(levels))
    x = torch.randint(levels, (5, 3))
    bits = flow.bits_per_dim(x)
    assert torch.allclose(bits, torch.full_like(bits, math.log2(levels)), rtol=1e-6)
    samples = flow.sample(9)
    assert samples.dtype == torch.int64
    assert ((samples >= 0) & (samples < levels)).all()


# --- bad input ------------------------------------------------------------------------


class WrongLogDet(Uniform):
    """Returns one number for the whole batch."""

    def forward_and_log_det(self, x):
        return x.clone(), x.new_zeros(())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Flow(nn.Linear(2, 2), standard()), TypeError, "InvertibleModule"),
        (lambda: Flow(network(), nn.Linear(2, 2)), TypeError, "base is a Linear"),
        (lambda: StandardNormal([0]), ValueError, "at least 1"),
        (lambda: StandardNormal([]), ValueError, "at least 1"),
        (lambda: Dequantize(1), ValueError, "levels is 1"),
        (lambda: Dequantize(4)(torch.tensor([4])), ValueError, "from 0 to 3"),
        (lambda: Dequantize(4)(torch.tensor([0.5])), ValueError, "whole numbers"),
        (
            lambda: Flow(network(), standard([3])).log_prob(data()),
            ValueError,
            r"shape \(4,\) .* \(3,\)",
        ),
        (
            lambda: Flow(WrongLogDet(), standard()).log_prob(data()),
            RuntimeError,
            "one real number for each sample",
        ),
        (
            lambda: Flow(network(), standard()).sample(2, temperature=-1.0),
            ValueError,
            "temperature is -1",
        ),
        (
            lambda: Flow(network(), BASES["torch"]()).sample(2, temperature=0.5),
            ValueError,
            "use a base of invtorch.flows",
        ),
        (lambda: Flow(network(), standard()).sample(0), ValueError, "count is 0"),
        (
            lambda: Flow(network(), standard()).sample(2, data(2), data(3)),
            ValueError,
            "the same batch",
        ),
        (
            lambda: Flow(
                Uniform(), standard(), dequantize=Dequantize()
            ).sample_and_log_prob(1),
            ValueError,
            "call `sample`, then",
        ),
        (
            lambda: (
                ConditionalNormal(nn.Linear(1, 3).double(), [2])
                .double()
                .log_prob(data(1)[:, :2], data(1)[:, :1])
            ),
            ValueError,
            "mean and deviation",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
