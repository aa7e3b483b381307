"""`memory="auto"`: the fastest step whose activations fit in a budget, foreseen."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.exc import Unsupported

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.engine.automatic import capacity
from invtorch.engine.budget import peak, plan
from invtorch.engine.costs import Cost
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner, Leapfrog, Scale
from tests.stacks import parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = ON_THE_CPU

DEPTH, CHANNELS, SIZE = 24, 8, 24
STATE = 4 * CHANNELS * SIZE * SIZE
PLAIN = 10**12


def paper(depth: int = DEPTH, **options) -> InvertibleSequential:
    """Return the paper's layers, whose strides take turns."""
    layers = [
        OrthogonalCoupling(
            GatedResidualBlock(4, 4, hidden=8, stride=(1, 2, 4)[i % 3]),
            channels=CHANNELS,
        )
        for i in range(depth)
    ]
    return InvertibleSequential(*layers, memory="auto", **options)


def image() -> torch.Tensor:
    return torch.randn(1, CHANNELS, SIZE, SIZE)


def step_of(net, x):
    def step() -> None:
        net(x).sum().backward()

    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    step()
    return step


@functools.cache
def measured_once(anchors: int):
    net = paper(anchors=anchors, budget=PLAIN)
    step = step_of(net, image())
    assert set(net.plan.strategies) == {"store"}
    return net, step, net.plan.peak


@pytest.mark.parametrize("anchors", [0, 4])
@settings(max_examples=4)
@given(st.floats(0, 1))
def test_the_peak_is_foreseen_and_within_the_budget(anchors, place) -> None:
    net, step, highest = measured_once(anchors)
    least = peak(net.plan.costs, ["invert"] * DEPTH, net.plan.anchors)
    net.budget = int(least + place * (highest - least))
    step()
    measured = measure_memory(step).peak
    assert abs(net.plan.peak / measured - 1) <= 0.15
    assert measured <= net.budget + 64  # and the loss, a number


def test_the_smallest_and_the_largest_budget() -> None:
    net, x = paper(anchors=0, budget=PLAIN), image()
    step = step_of(net, x)
    plain, times, budgets = net.plan.peak, [], []
    least = peak(net.plan.costs, ["invert"] * DEPTH, net.plan.anchors)
    for place in (0, 0.25, 0.5, 0.75, 1):
        net.budget = int(least + place * (plain - least))
        step()
        budgets.append(net.plan.peak)
        times.append(net.plan.seconds)
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]
    assert budgets == sorted(budgets)
    assert set(net.plan.strategies) == {"store"}
    net.budget = least
    step()
    assert net.plan.strategies.count("invert") >= DEPTH - 4  # others cost nothing
    net.budget = least - 1
    with pytest.raises(ValueError, match=f"budget is {least - 1} bytes, .* {least}: "):
        step()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_gradients_are_those_of_plain_autograd(share) -> None:
    inner = stack(0, depth=4)
    net = stack(3, depth=8)
    net.extend([inner, net[1], net[2].inv])
    x, context = sample(requires_grad=True), sample(1, requires_grad=True)
    inputs = [x, context, *parameters(net)]

    def gradients():
        return torch.autograd.grad(weighed(net(x, context)), inputs)

    net.memory = "store"
    expected = gradients()
    net.memory, net.budget = "auto", PLAIN
    assert_all_equal(gradients(), expected)
    costs, places = net.plan.costs, net.plan.anchors
    least = peak(costs, ["invert"] * len(costs), places)
    net.budget = int(least + share * (net.plan.peak - least)) + 1
    assert_all_equal(gradients(), expected)
    assert net.plan.peak <= net.budget
    chosen = net.plan.strategies
    assert (chosen[1], chosen[2]) == (chosen[12], chosen[13])  # twice in the chain


def test_tuple_states_and_both_directions() -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(6)], memory="auto").double()
    q, p = sample(2, requires_grad=True), sample(2, requires_grad=True)
    for direction in ("forward", "inverse"):

        def gradients(direction=direction):
            a, b = getattr(net, direction)((q, p))
            return torch.autograd.grad(
                weighed(a) + weighed(b), [q, p, *parameters(net)]
            )

        net.memory = "auto"
        found = gradients()
        net.memory = "store"
        assert_all_equal(found, gradients())


def test_to_plan_changes_nothing() -> None:
    part = nn.Sequential(Conditioner(2, 2, dropout=0.5), nn.BatchNorm2d(2))
    net = InvertibleSequential(AdditiveCoupling(part), AdditiveCoupling(part))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    torch.manual_seed(3)
    net.memory = "store"
    expected = net(x)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    part[1].reset_running_stats()
    torch.manual_seed(3)
    net.memory = "auto"
    assert torch.equal(net(x), expected)
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert all(p.grad is None for p in net.parameters())
    assert x.grad is None
    assert part[0].evaluations == 4


class Forgetful(InvertibleModule):
    """A layer that does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x, *_):
        return x * self.scale

    def inverse(self, y, *_):
        return y / self.scale * 1.1


def test_a_layer_with_a_wrong_inverse_is_not_inverted() -> None:
    net = InvertibleSequential(
        Scale(4), Forgetful(), Scale(4), memory="auto", anchors=0
    )
    net.budget = 10**9
    net(sample().float()).sum().backward()
    costs, modules = net.plan.costs, list(net)
    least = peak(costs, ["invert", "checkpoint", "invert"], frozenset())
    tight = plan(costs, modules, frozenset(), least, 1e-7)
    assert tight.strategies[1] != "invert"
    with pytest.raises(ValueError, match="budget is"):
        plan(costs, modules, frozenset(), least - 1, 1e-7)


def layers(count: int) -> list[InvertibleModule]:
    return [InvertibleModule() for _ in range(count)]


def test_what_is_asked_of_a_layer_counts() -> None:
    net, x = paper(depth=6, anchors=0, budget=PLAIN), image()
    step = step_of(net, x)
    costs = net.plan.costs
    net[2].memory = "store"
    least = ["invert", "invert", "store", "invert", "invert", "invert"]
    net.budget = peak(costs, least, frozenset())
    step()
    assert net.plan.strategies[2] == "store"
    assert measure_memory(step).peak <= net.budget + 64


def cost(seconds: dict[str, float]) -> Cost:
    work = dict.fromkeys(seconds, 300)
    return Cost("layer", 100, 100, 700, True, 50, work, seconds, 1e-8)


def test_offloading_is_chosen_only_where_it_is_faster() -> None:
    """A layer whose inverse is slow is kept on the host, if that is faster."""
    times = {"store": 3.0, "checkpoint": 4.0, "invert": 6.0}
    for transfer, wanted in ((4.5, "offload"), (9.0, "invert")):
        costs = [cost(times | {"offload": transfer}) for _ in range(10)]
        least = peak(costs, ["invert"] * 10, frozenset())
        found = plan(costs, layers(10), frozenset(), least, 1e-7)
        assert set(found.strategies[1:]) == {wanted}


@given(st.integers(0, 10), st.integers(500, 20_000))
def test_the_budget_of_a_plan_always_holds(anchors, budget) -> None:
    costs = [cost({"store": 3.0, "checkpoint": 4.0, "invert": 4.5}) for _ in range(12)]
    places = frozenset(range(1, anchors + 1))
    least = peak(costs, ["invert"] * 12, places)
    if budget < least:
        with pytest.raises(ValueError, match=f"at least {least}"):
            plan(costs, layers(12), places, budget, 1e-7)
        return
    found = plan(costs, layers(12), places, budget, 1e-7)
    assert found.peak == peak(costs, found.strategies, places) <= budget
    assert found.seconds <= 12 * 4.5


def test_the_table() -> None:
    net, x = paper(depth=5, budget=PLAIN), image()
    assert net.plan is None
    net(x).sum().backward()
    lines = str(net.plan).splitlines()
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["layer", str(i)] for i in range(5)
    ]
    assert "of a budget of 1 TB" in lines[-1]


def test_a_fraction_of_the_device() -> None:
    net, x = paper(depth=3, budget=0.25), image()
    net(x).sum().backward()
    assert net.plan.budget == int(0.25 * capacity(x.device))


@pytest.mark.parametrize("budget", [0, -1, 1.5, 0.0, "4GB"])
def test_invalid_budgets(budget) -> None:
    with pytest.raises(ValueError, match=f"budget is {budget!r}, but must be"):
        paper(depth=2, budget=budget)


def test_states_without_values_are_not_measured() -> None:
    net = paper(depth=3).to("meta")
    assert net(image().to("meta")).shape == image().shape
    assert net.plan is None


def test_the_state_dtype_counts() -> None:
    net, x = paper(depth=3, budget=PLAIN), image()
    net.memory, net.state_dtype = "auto", torch.float64
    net(x).sum().backward()
    assert net.plan.costs[0].state == 2 * STATE


def test_under_compile_it_is_refused() -> None:
    net = stack(0, depth=2)
    net.memory = "auto"
    with pytest.raises(Unsupported, match="memory='auto' is not supported under"):
        torch.compile(net, backend="eager", fullgraph=True)(sample())
