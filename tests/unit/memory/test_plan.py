"""`memory="auto"`: the fastest step whose activations fit in a budget, foreseen."""

import functools
import itertools
import math
import random
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
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
from invtorch.memory.costs import REPETITIONS, Cost, _Trial
from invtorch.memory.plan import Plan, capacity, peak, plan, settled, total
from invtorch.module import MEMORY
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


def test_the_smallest_and_the_largest_budget(monkeypatch) -> None:
    monkeypatch.setattr(_Trial, "_timed", under_load(random.Random(0)))
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


@settings(max_examples=10)
@given(
    st.sampled_from([0, 3, "auto"]),
    st.sampled_from([None, "raise", "adapt"]),
    st.sampled_from([None, torch.float64]),
    st.booleans(),
)
def test_what_is_wholly_stored_computes_nothing_else(
    anchors, guard, state_dtype, with_log_det
) -> None:
    net = stack(0, depth=4)
    net.extend([stack(1, depth=2), net[1].inv])
    net.anchors, net.guard, net.state_dtype = anchors, guard, state_dtype
    net.budget = PLAIN
    x, context = sample(requires_grad=True), sample(1)

    def step() -> None:
        if with_log_det:
            y, log_det = net.forward_and_log_det(x, context)
            (weighed(y) + log_det.sum()).backward()
        else:
            weighed(net(x, context)).backward()

    def operations(memory: str) -> Counter[str]:
        net.memory = memory
        step()  # measures the layers
        with torch.autograd.profiler.profile() as profile:
            step()
        return Counter(event.name for event in profile.function_events)

    assert operations("auto") == operations("store")


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
    every = itertools.product(
        costs[0].seconds, ["checkpoint", "store"], costs[2].seconds
    )
    least = min(peak(costs, some, frozenset()) for some in every)
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


class Case(NamedTuple):
    """Layers that a plan is made for, with drawn costs."""

    costs: list[Cost]
    modules: list[InvertibleModule]
    anchors: frozenset[int]

    def plan(self, budget: int) -> Plan:
        return plan(self.costs, self.modules, self.anchors, budget, 1e-7)

    def peak(self, strategies) -> int:
        return peak(self.costs, strategies, self.anchors)

    @property
    def stored(self) -> int:
        return self.peak(["store"] * len(self.costs))

    @property
    def least(self) -> int:
        """The least that the planner says is needed."""
        with pytest.raises(ValueError, match="at least") as caught:
            self.plan(-1)
        assert len(str(caught.value)) <= 160
        return int(str(caught.value).split("at least ")[1].split(":")[0])

    def budget(self, place: float) -> int:
        ends = sorted([self.least, self.stored])
        return int(ends[0] + place * (ends[1] - ends[0]))


def bytes_drawn(rng: random.Random, names: list[str]) -> Cost:
    """Draw a layer without times."""
    state, output, stored, forward = (
        rng.choice([0, 1, rng.randint(2, 900)]) for _ in "1234"
    )
    work = {name: rng.randint(0, 900) for name in names}
    times = dict.fromkeys(names, 0.0)
    off = rng.choice([1e-9, 1e-9, 1e-9, 1.0])
    held = rng.random() < 0.5
    return Cost("layer", state, output, stored, held, forward, work, times, off)


def names_of(offload: bool) -> list[str]:
    return [*["store", "checkpoint", "invert"], *["offload"] * offload]


PLACES = st.floats(0, 1)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def cases(draw) -> Case:
    """Draw layers of a few kinds; some are shared, anchored, or ask for memory."""
    names, rng = names_of(draw(st.booleans())), random.Random(draw(SEEDS))
    order = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    noise = draw(st.sampled_from([0.0, 0.1, 2.0]))
    kinds = [bytes_drawn(rng, names) for _ in range(4)]
    costs = [
        kinds[k]._replace(
            seconds={name: rng.uniform(1, 5) for name in names},
            noise=noise * rng.random(),
        )
        for k in order
    ]
    pool = layers(len(order))
    for module in pool:
        module.memory = draw(st.sampled_from([None, None, None, *MEMORY]))
    shared = draw(
        st.lists(st.sampled_from(pool), min_size=len(pool), max_size=len(pool))
    )
    modules = draw(st.sampled_from([pool, shared]))
    anchors = draw(st.frozensets(st.integers(0, len(order) - 1)))
    return Case(costs, modules, anchors)


@given(cases(), st.integers(0, 1000))
def test_what_fits_wholly_stored_is_wholly_stored(case, more) -> None:
    found = case.plan(case.stored + more)
    assert set(found.strategies) == {"store"}
    assert found.peak == case.stored


@given(cases(), PLACES)
def test_the_budget_holds_or_the_least_is_named(case, place) -> None:
    for budget in (case.least, case.budget(place)):
        found = case.plan(budget)
        assert found.peak == case.peak(found.strategies) <= budget
    with pytest.raises(ValueError, match=f"at least {case.least}: "):
        case.plan(case.least - 1)


@given(cases(), PLACES, PLACES)
def test_a_larger_budget_is_no_slower_and_uses_no_less(case, one, other) -> None:
    small, large = (case.plan(case.budget(b)) for b in sorted([one, other]))
    assert large.seconds <= small.seconds
    assert large.peak >= small.peak


@given(cases(), st.data())
def test_to_store_more_predicts_no_more_time(case, data) -> None:
    times, names = settled(case.costs), list(case.costs[0].seconds)
    some = [data.draw(st.sampled_from(names)) for _ in times]
    more = [data.draw(st.sampled_from(["store", name])) for name in some]
    assert total(times, more) <= total(times, some)


@given(cases(), PLACES)
def test_layers_get_what_they_can_have(case, place) -> None:
    """What they ask for at least, one strategy if shared, no inverse that is off."""
    found = case.plan(case.budget(place)).strategies
    chosen: dict[int, str] = {}
    for cost, module, memory in zip(case.costs, case.modules, found, strict=True):
        assert MEMORY.index(memory) >= MEMORY.index(module.memory or "invert")
        assert memory in cost.seconds
        assert chosen.setdefault(id(module), memory) == memory
        assert memory != "invert" or cost.round_trip < 1e-3


def timed(cost: Cost, true: dict[str, float], noise: float, rng) -> Cost:
    """Return a cost whose times are off by at most half of its noise."""
    seconds = {name: t + rng.uniform(-0.5, 0.5) * noise for name, t in true.items()}
    return cost._replace(seconds=seconds, noise=noise)


def planned_twice(kinds, order, anchors, place, seeds) -> list[tuple[str, ...]]:
    """Plan for two measurements that differ by noise only."""
    found, modules = [], layers(len(order))
    for rng in map(random.Random, seeds):
        costs = [timed(*kinds[k], rng) for k in order]
        case = Case(costs, modules, anchors)
        found.append(case.plan(case.budget(place)).strategies)
    return found


ORDERS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
ANCHORS = st.sampled_from([frozenset(), frozenset({3}), frozenset({2, 5, 8})])


@given(ORDERS, ANCHORS, PLACES, SEEDS, st.tuples(SEEDS, SEEDS), PLACES, st.booleans())
def test_noise_is_not_planned_for(
    order, anchors, place, seed, seeds, noise, offload
) -> None:
    """Layers that save the same time a byte, in truth, measured with much noise."""
    rng, kinds = random.Random(seed), []
    rate = 1e-3
    for _ in range(3):
        cost = bytes_drawn(rng, names_of(offload))._replace(round_trip=0.0)
        extra = rate * max(cost.stored + cost.state, 1)
        true = dict.fromkeys(cost.seconds, 2.0 + extra) | {"store": 2.0}
        kinds.append((cost, true, 0.99 * noise * extra))
    first, second = planned_twice(kinds, order, anchors, place, seeds)
    assert first == second
    strategies = [MEMORY.index(memory) for memory in first]
    assert len(set(order)) > 1 or strategies == sorted(strategies)


@given(ORDERS, ANCHORS, PLACES, SEEDS, st.tuples(SEEDS, SEEDS), st.booleans())
def test_differences_beyond_noise_are_planned_for_always_alike(
    order, anchors, place, seed, seeds, offload
) -> None:
    """Whatever the times are: a noise that is small against all of them."""
    rng, kinds = random.Random(seed), []
    for _ in range(3):
        cost = bytes_drawn(rng, names_of(offload))
        true = {name: rng.uniform(2, 5) for name in cost.seconds} | {"store": 1.0}
        kinds.append((cost, true, 1e-9))
    first, second = planned_twice(kinds, order, anchors, place, seeds)
    assert first == second


@given(cases(), PLACES, st.data())
def test_which_of_equal_layers_was_measured_does_not_matter(case, place, data) -> None:
    """Equal layers, whose times differ within their noise, change places."""
    count = len(case.costs)
    costs = [case.costs[0]._replace(seconds=c.seconds, noise=5.0) for c in case.costs]
    found = []
    for order in (range(count), data.draw(st.permutations(range(count)))):
        moved = Case([costs[i] for i in order], layers(count), case.anchors)
        found.append(moved.plan(moved.budget(place)))
    assert found[0].strategies == found[1].strategies
    assert found[0].seconds == pytest.approx(found[1].seconds)


def under_load(rng: random.Random):
    """Return what stands in for a clock; load spoils less than half of the times."""
    true = {"store": 1e-3, "checkpoint": 1.4e-3, "invert": 1.5e-3}
    spoilt: dict[str, list[float]] = {name: [] for name in true}

    def clock(_trial, memory: str) -> float:
        if not spoilt[memory]:
            load = [rng.uniform(1, 50) for _ in range((REPETITIONS - 1) // 2)]
            load += [rng.uniform(0, 0.02) for _ in range(REPETITIONS - len(load))]
            spoilt[memory] = rng.sample(load, REPETITIONS)
        return true[memory] * (1 + spoilt[memory].pop())

    return clock


@settings(max_examples=5)
@given(PLACES, SEEDS, SEEDS)
def test_two_measurements_under_load_give_one_plan(place, one, other) -> None:
    found = []
    for seed in (one, other):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Trial, "_timed", under_load(random.Random(seed)))
            net = paper(depth=6, anchors=0, budget=PLAIN)
            net(image())
        case = Case(net.plan.costs, list(net), net.plan.anchors)
        found.append(case.plan(case.budget(place)).strategies)
    assert found[0] == found[1]


@settings(max_examples=5)
@given(st.lists(st.sampled_from([None, *MEMORY]), min_size=6, max_size=6))
@example(["offload", None, "invert", "checkpoint", "store", None])
def test_what_layers_and_containers_ask_for_is_foreseen(asked) -> None:
    inner = InvertibleSequential(*list(paper(depth=3)), memory=asked[0])
    net = InvertibleSequential(inner, *list(paper(depth=5)), memory="auto", anchors=2)
    for layer, memory in zip(list(net)[1:], asked[1:], strict=True):
        layer.memory = memory
    net.budget = PLAIN
    x = image()
    step = step_of(net, x)
    case = Case(net.plan.costs, layers(8), net.plan.anchors)
    wanted = [asked[0]] * 3 + asked[1:]
    least = ["checkpoint" if m == "offload" else m or "invert" for m in wanted]
    net.budget = case.peak(least)
    step()
    pairs = zip(net.plan.strategies, least, strict=True)
    assert all(MEMORY.index(got) >= MEMORY.index(low) for got, low in pairs)
    assert measure_memory(step).peak <= net.budget + 64


def test_a_container_without_layers() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(InvertibleSequential(memory="auto")(x), x)


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


@pytest.mark.parametrize("budget", [0, -1, 1.5, 0.0, "4GB", True, math.inf, None])
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
    with pytest.raises(Unsupported, match="memory='auto' is planned outside of"):
        torch.compile(net, backend="eager", fullgraph=True)(sample())


sizes = st.lists(st.tuples(*[st.integers(8, 16)] * 2), min_size=1, max_size=3)


@functools.cache
def measured_small():
    net = paper(depth=6, anchors=0, budget=PLAIN)
    step_of(net, torch.randn(1, CHANNELS, 16, 16))
    return net, net.plan


@settings(max_examples=4)
@given(sizes, st.floats(0.05, 1))
def test_plans_of_similar_sizes_are_shared_and_never_over_budget(sizes, place) -> None:
    net, largest = measured_small()
    least = peak(largest.costs, ["invert"] * len(net), frozenset())
    net.budget = int(least + place * (largest.peak - least))
    for height, width in sizes:
        before = len(net._automatic.costs)
        step = step_of(net, torch.randn(1, CHANNELS, height, width))
        assert measure_memory(step).peak <= net.budget + 64
        if 2 * height * width >= 16 * 16:
            assert len(net._automatic.costs) == before  # nothing was measured


def test_a_larger_input_is_measured() -> None:
    net = paper(depth=3, budget=PLAIN)
    for size, measured in ((8, 1), (7, 1), (9, 2), (9, 2), (8, 2), (3, 3), (18, 4)):
        net(torch.randn(1, CHANNELS, size, 8)).sum().backward()
        assert len(net._automatic.costs) == measured


def test_a_smaller_input_is_planned_where_the_larger_one_is_refused() -> None:
    net = paper(depth=3, anchors=0, budget=PLAIN)
    large, small = (torch.randn(1, CHANNELS, size, 8) for size in (8, 6))
    net(large).sum().backward()
    net.budget = peak(net.plan.costs, ["invert"] * 3, frozenset()) - 1
    with pytest.raises(ValueError, match="budget is"):
        net(large)
    assert measure_memory(step_of(net, small)).peak <= net.budget + 64


def test_the_number_of_plans_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr("invtorch.memory.plan.KEPT", 3)
    net = InvertibleSequential(Scale(4), memory="auto", budget=PLAIN)
    for size in range(3, 12):
        net(torch.randn(size, 4, 2, 2)).sum().backward()
        assert len(net._automatic.costs) <= 3
        assert len(net._automatic.plans) <= 3
    before = [*net._automatic.costs]
    net(torch.randn(9, 4, 2, 2)).sum().backward()
    assert [*net._automatic.costs] == [*before[1:], before[0]]  # used last
    net.anchors = 0
    for budget in range(10**6, 10**6 + 6):
        net.budget = budget
        net(torch.randn(9, 4, 2, 2)).sum().backward()
    assert len(net._automatic.plans) <= 3
