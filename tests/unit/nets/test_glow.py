"""Glow: its density, the learned split prior, context, sampling, memory, errors."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from invtorch import AffineCoupling, InvertibleSequential, Logit
from invtorch.flows import Dequantize, Flow, StandardNormal
from invtorch.nets import Glow
from invtorch.planning import measure_memory
from invtorch.testing import assert_log_det
from tests.devices import ON_THE_CPU
from tests.registry import perturbed
from tests.strategies import costly
from tests.tolerances import assert_all_equal, assert_equal


def trained(net: Glow, *shape: int, context: tuple[torch.Tensor, ...] = ()) -> Glow:
    """Return a net in double precision with parameters of no special value."""
    net = net.double()
    net(torch.randn(8, *shape, dtype=torch.float64), *context)
    return perturbed(net, by=0.05)


def density(net: Glow, space: tuple[int, ...]) -> Flow:
    return Flow(net, StandardNormal(net.latent_shapes(space))).double()


@st.composite
def examples(draw: st.DrawFn):
    """Draw a net, its data and a context of any size, or none."""
    dims, levels = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    channels, of_context = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    net = Glow(
        channels,
        levels=levels,
        steps=draw(st.integers(1, 2)),
        hidden=3,
        dims=dims,
        context_channels=of_context,
        anchors=0,
    )
    shape = (channels, *(2**levels * draw(st.integers(1, 2)) for _ in range(dims)))
    x = torch.randn(2, *shape, dtype=torch.float64)
    around = draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims))
    space = draw(st.sampled_from([[], around]))
    context = (torch.randn(2, of_context, *space, dtype=torch.float64),)
    first = (context[0][:1].expand(8, *context[0].shape[1:]),)
    context, first = (context, first) if of_context else ((), ())
    return trained(net, *shape, context=first), x, context


@costly(15)  # a Jacobian and its derivative take seconds
@given(examples())
def test_inverse_and_log_det(example) -> None:
    net, x, context = example
    assume(x[0].numel() <= 32)  # as two axes, levels and channels have at least
    z = net(x, *context)
    assert_equal(net.inverse(z, *context), x)
    assert_log_det(net, x, *context)
    shapes = net.latent_shapes(x.shape[2:])
    found = [tuple(t.shape[1:]) for t in z] if net.levels > 1 else tuple(z.shape[1:])
    assert found == shapes


@given(examples())
def test_gradients_are_those_of_plain_autograd(example) -> None:
    net, x, context = example
    flow, found = density(net, tuple(x.shape[2:])), {}
    inputs = [x.requires_grad_(), *(c.requires_grad_() for c in context)]
    inputs += net.parameters()
    for net.layers.memory in ("invert", "store"):
        loss = flow.log_prob(x, *context).sin().sum()
        found[net.layers.memory] = torch.autograd.grad(loss, inputs)
    assert_all_equal(found["invert"], found["store"])


def test_the_density_is_that_of_the_levels_one_by_one() -> None:
    """The oracle states the split prior as a conditional normal distribution."""
    net = trained(Glow(1, levels=2, steps=1, hidden=4), 1, 8, 8)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    unshuffle, step, prior, *_, rest = net.layers
    h, log_det = step.forward_and_log_det(unshuffle(x))
    h, u = h.chunk(2, 1)
    a, t = prior.conditioner(h).chunk(2, 1)
    log_s = math.log(8) * torch.tanh(a / math.log(8))
    of_u = Normal(-t * (-log_s).exp(), (-log_s).exp()).log_prob(u)
    z, more = rest.module.forward_and_log_det(unshuffle(h))
    expected = log_det + more + of_u.flatten(1).sum(1)
    expected += Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    assert_equal(density(net, (8, 8)).log_prob(x), expected)
    assert isinstance(prior, AffineCoupling)


def test_the_temperature_scales_the_deviation_of_the_split_prior() -> None:
    net = trained(Glow(1, levels=2, steps=1, hidden=4), 1, 4, 4)
    flow = density(net, (4, 4))
    seeds = [torch.Generator().manual_seed(5) for _ in range(3)]
    z = [
        net(flow.sample(6, temperature=t, generator=g))
        for t, g in zip((0.0, 0.5, 1.0), seeds, strict=True)
    ]
    for cold, warm, hot in zip(*z, strict=True):
        assert cold.abs().max() < 1e-12
        assert_equal(warm, hot / 2)


def test_samples_of_each_context_depend_on_it() -> None:
    context = torch.randn(3, 2, dtype=torch.float64)
    net = Glow(1, levels=2, steps=2, hidden=4, context_channels=2)
    net = trained(net, 1, 4, 4, context=(context[:1].expand(8, 2),))
    flow = density(net, (4, 4))
    x = flow.sample(5, context)
    assert x.shape == (3, 5, 1, 4, 4)
    log_prob = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(5, 0))
    other = flow.log_prob(x.flatten(0, 1), context.roll(1, 0).repeat_interleave(5, 0))
    assert (log_prob - other).abs().min() > 1e-6


def test_it_begins_as_normalized_data() -> None:
    """Couplings begin as the identity, and matrices as orthogonal ones."""
    x = 5 * torch.randn(16, 3, 16, 16, dtype=torch.float64) + 2
    coarsest, *_ = Glow(3, levels=3, steps=2, hidden=4).double()(x)
    n = 16 * 2 * 2  # values that a deviation is of
    assert coarsest.square().mean().item() == pytest.approx((n - 1) / n)
    assert coarsest.mean((0, 2, 3)).abs().max() < 1e-12


def test_whole_numbers_behind_a_logit() -> None:
    glow = Glow(1, levels=2, steps=1, hidden=4)
    base = StandardNormal(glow.latent_shapes((8, 8)))
    net = InvertibleSequential(Logit(0.05), glow)
    flow = Flow(net, base, dequantize=Dequantize(17))
    x = torch.randint(17, (8, 1, 8, 8))
    flow.bits_per_dim(x).mean().backward()
    assert all(p.grad is not None for p in flow.parameters())
    drawn = flow.sample(3)
    assert drawn.shape == (3, 1, 8, 8)
    assert 0 <= drawn.min() <= drawn.max() <= 16


@ON_THE_CPU
def test_memory_does_not_depend_on_the_number_of_steps() -> None:
    def measured(steps: int, memory: str) -> tuple[int, int]:
        net = Glow(2, levels=2, steps=steps, hidden=16, memory=memory, anchors=0)
        flow = Flow(net, StandardNormal(net.latent_shapes((32, 32))))
        x = torch.randn(4, 2, 32, 32)

        def step() -> None:
            flow.log_prob(x).sum().backward()

        step()  # initializes, and allocates the gradients
        live = measure_memory(lambda: net.forward_and_log_det(x)).live
        return live, measure_memory(step).peak

    few, many = measured(2, "invert"), measured(12, "invert")
    assert many[0] == few[0] == 4 * (2 * 32 * 32 + 1) * 4
    assert many[1] <= 1.05 * few[1]
    stored = [measured(n, "store")[0] for n in (2, 12)]
    assert stored[1] > 4 * stored[0]


def test_it_shows_its_layout() -> None:
    shown = repr(Glow(3, levels=2, steps=4, hidden=8, context_channels=2))
    assert shown.split("\n")[:5] == [
        "Glow(",
        "  dims=2, context_channels=2",
        "  level 0: 12 channels at 1/2 of the size, 4 steps, 6 latent",
        "  level 1: 24 channels at 1/4 of the size, 4 steps, 24 latent",
        "  (layers): InvertibleSequential(28 layers, 25,212 parameters, "
        "memory='invert', anchors=8, guard='raise'",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels is 0, but must be at least 1"),
        ({"levels": 0}, ValueError, "levels is 0, but must be at least 1"),
        ({"steps": 1.5}, TypeError, "steps is 1.5, but must be a whole number"),
        ({"hidden": 0}, ValueError, "hidden is 0, but must be at least 1"),
        ({"dims": 4}, ValueError, "dims is 4, but must be 1, 2 or 3"),
        ({"context_channels": -1}, ValueError, "context_channels is -1, but must be"),
        ({"bound": 1.0}, ValueError, "bound is 1.0, but must be larger than 1"),
        (
            {"conditioner": lambda *_: None},
            TypeError,
            "conditioner is of type NoneType",
        ),
        (
            {"conditioner": lambda a, b: nn.Conv2d(a, b + 1, 1)},
            ValueError,
            "conditioner Conv2d returns 5 channels",
        ),
    ],
)
def test_wrong_arguments(options, error, message) -> None:
    with pytest.raises(error, match=message):
        Glow(**({"channels": 1} | options))


def test_states_and_contexts_that_do_not_fit() -> None:
    net = Glow(1, levels=2, steps=1, hidden=4, context_channels=2)
    x, context = torch.randn(2, 1, 8, 8), torch.randn(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"space is \(25, 25\), but 2 levels need 2"):
        net.latent_shapes((25, 25))
    for space in (8, 8.0, (8.0, 8), ("8", 8)):
        with pytest.raises(TypeError, match=r"space is .*, but must be a"):
            net.latent_shapes(space)
    for size in (5, 6):
        with pytest.raises(ValueError, match="cannot be divided into blocks"):
            net(x[..., :size, :size], context)
    for bad in (context[:, :1], context[:1], context[..., 0], context[0, :, 0]):
        with pytest.raises(ValueError, match="the context has shape"):
            net(x, bad)
    with pytest.raises(ValueError, match="the context has shape"):
        net(x)
    with pytest.raises(ValueError, match="a context was given, but context_channels"):
        Glow(1, levels=1, steps=1)(x, context)
    z = net.eval()(x, context)
    with pytest.raises(ValueError, match=r"split|fit"):
        net.inverse(z[::-1], context)
