"""Plan a memory strategy for each layer: the fastest step within a budget of bytes.

A candidate is an assignment of a strategy to every layer. To raise a layer is to give
it a strategy that keeps more. Candidates are made by raising one layer after another
and do not depend on the budget. The plan is the fastest candidate whose peak is within
the budget, so a larger budget never results in a slower step or a smaller peak. One
candidate stores everything, and is the plan if it fits.

Measured times are noisy. Differences within the noise are ignored. Layers that save the
same time for each byte, within noise, are raised from the last to the first, because
the last layers free their activations before anything is rebuilt.
"""

from __future__ import annotations

import math
import operator
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from invtorch._torch import modules_inside, parameters_of
from invtorch.composite import Pass, Step, elementary, inner_steps
from invtorch.engine.checks import as_tensors, converted
from invtorch.engine.guard.anchors import Anchors
from invtorch.engine.guard.tolerance import tolerance
from invtorch.engine.restore.context import tensors_in
from invtorch.memory.costs import Cost, measure_costs
from invtorch.module import MEMORY, InvertibleModule
from invtorch.precision import as_kind, eps_of
from invtorch.recording import Context

Times: TypeAlias = dict[str, Fraction]
SIMILAR = 2  # how much smaller an input may be than the one that was measured
KEPT = 32  # measurements and plans of one container


class Plan(NamedTuple):
    """A memory strategy for every layer; `print` shows it as a table.

    Attributes:
        costs: The measured cost of each layer.
        strategies: The strategy of each layer.
        anchors: The indices of the states that are kept under every strategy.
        budget: The bytes that activations may take.
        peak: The predicted peak of activations, in bytes.
        seconds: The predicted time of the forward and backward pass of these layers.
    """

    costs: Sequence[Cost]
    strategies: tuple[str, ...]
    anchors: frozenset[int]
    budget: int
    peak: int
    seconds: float

    def __str__(self) -> str:
        """Return the table."""
        width = max([len("layer"), *(len(cost.label) for cost in self.costs)])
        head = ("if stored", "rebuilding", "milliseconds", "round trip")
        lines = [
            f"{'layer':{width}}  {'memory':10}" + "".join(f"{h:>14}" for h in head)
        ]
        for cost, memory in zip(self.costs, self.strategies, strict=True):
            extra = 1e3 * (cost.seconds["invert"] - cost.seconds["store"])
            stored = kept(cost, "store", first=False)
            lines.append(
                f"{cost.label:{width}}  {memory:10}{amount(stored):>14}"
                f"{amount(cost.work['invert']):>14}{extra:14.2f}{cost.round_trip:14.1e}"
            )
        fastest = sum(cost.seconds["store"] for cost in self.costs)
        lines.append(
            f"peak {amount(self.peak)} of a budget of {amount(self.budget)}, "
            f"{1e3 * self.seconds:.1f} ms a step (all stored: {1e3 * fastest:.1f} ms)"
        )
        return "\n".join(lines)


class Raise(NamedTuple):
    """A change of a layer to a strategy that keeps more and takes less time.

    Attributes:
        places: The indices of the layer in the pass; a shared layer has several.
        memory: The new strategy.
        size: The bytes that it keeps in addition.
        gain: The seconds that it saves for each of these bytes.
    """

    places: tuple[int, ...]
    memory: str
    size: int
    gain: Fraction | float


def plan(
    costs: Sequence[Cost],
    modules: Sequence[InvertibleModule],
    anchors: frozenset[int],
    budget: int,
    eps: float,
    asked: Sequence[str] | None = None,
) -> Plan:
    """Choose the strategy of each layer.

    Args:
        costs: The measured cost of each layer.
        modules: The layers. A layer that occurs twice has one strategy.
        anchors: The indices of the states that are kept under every strategy.
        budget: The bytes that activations may take.
        eps: The eps of the state's dtype.
        asked: The lowest strategy of each layer; by default its own `memory`.

    Raises:
        ValueError: If no candidate fits in the budget.
    """
    least = asked or [module.memory or "invert" for module in modules]
    layers = _Layers(costs, modules, anchors, eps, least)
    fitting = [layers.longest(chain, budget) for chain in layers.chains()]
    found = [strategies for strategies in fitting if strategies is not None]
    if not found:
        raise ValueError(
            f"budget is {budget} bytes, but every plan takes at least "
            f"{layers.least_peak()}: raise it, keep fewer anchors ({len(anchors)} "
            f"now), or make the batch smaller"
        )
    best = min(found, key=lambda strategies: total(layers.times, strategies))
    highest, fastest = peak(costs, best, anchors), float(total(layers.times, best))
    return Plan(costs, tuple(best), anchors, budget, highest, fastest)


class _Layers:
    """The layers of a pass, and the orders in which they are raised.

    The arguments are those of `plan`.
    """

    def __init__(
        self,
        costs: Sequence[Cost],
        modules: Sequence[InvertibleModule],
        anchors: frozenset[int],
        eps: float,
        asked: Sequence[str],
    ) -> None:
        self.costs = costs
        self.anchors = anchors
        self.times = settled(costs)
        self.groups = _places_of_modules(modules)
        self.floors = ["invert"] * len(costs)
        for group in self.groups:
            floor = self._floor(group, asked, eps)
            for i in group:
                self.floors[i] = floor

    def chains(self) -> Iterator[list[Raise]]:
        """Yield the orders in which layers are raised.

        The first order is by the time saved for each byte, largest first, and from the
        last layer to the first among equals. The second is from the last layer to the
        first. Both end with everything stored. Under a small budget, one large raise
        may not fit and end an order early. Further orders therefore leave out raises
        above a size, which decreases from order to order.
        """
        sizes = {r.size.bit_length() for r in self._raises(None)}
        for bits in (None, *sorted(sizes, reverse=True)[1:]):
            raises = self._raises(bits)
            yield sorted(raises, key=lambda r: (-r.gain, -max(r.places)))
            yield sorted(raises, key=lambda r: (r.size > 0, -max(r.places)))

    def longest(self, chain: Sequence[Raise], budget: int) -> list[str] | None:
        """Raise as many layers of a chain as fit in the budget.

        Returns:
            The strategies, or `None` if nothing fits even without a raise.
        """
        for strategies, bound in self._prefixes(chain):
            if bound <= budget and peak(self.costs, strategies, self.anchors) <= budget:
                return list(strategies)
        return None

    def least_peak(self) -> int:
        """Return the smallest peak of all candidates."""
        least = peak(self.costs, self.floors, self.anchors)
        for chain in self.chains():
            for strategies, bound in self._prefixes(chain):
                if bound < least:
                    least = min(least, peak(self.costs, strategies, self.anchors))
        return least

    def _prefixes(self, chain: Sequence[Raise]) -> Iterator[tuple[list[str], int]]:
        """Yield strategies and a lower bound of their peak, with ever fewer raises."""
        strategies, undo = list(self.floors), []
        for r in chain:
            undo.append((r.places, strategies[r.places[0]]))
            self._assign(strategies, r.places, r.memory)
        bound = self._lower_bound(range(len(strategies)), strategies)
        yield strategies, bound
        for places, memory in reversed(undo):
            bound -= self._lower_bound(places, strategies)
            self._assign(strategies, places, memory)
            bound += self._lower_bound(places, strategies)
            yield strategies, bound

    @staticmethod
    def _assign(strategies: list[str], places: Iterable[int], memory: str) -> None:
        for i in places:
            strategies[i] = memory

    def _lower_bound(self, places: Iterable[int], strategies: Sequence[str]) -> int:
        return sum(
            kept(_without_input(self.costs[i], i), strategies[i], first=False)
            for i in places
        )

    def _floor(self, group: tuple[int, ...], asked: Sequence[str], eps: float) -> str:
        """Return the lowest strategy that the layer at these places can have."""
        each = [m for i in group for m in (asked[i], least_of(self.costs[i], eps))]
        return self._options(group, max(each, key=MEMORY.index))[0]

    def _options(self, group: tuple[int, ...], least: str) -> list[str]:
        """Return the measured strategies, from `least` up."""
        return [
            memory
            for memory in MEMORY[MEMORY.index(least) :]
            if all(memory in self.costs[i].seconds for i in group)
        ]

    def _raises(self, bits: int | None) -> list[Raise]:
        """Return the raises of each layer that keep less than 2**bits more bytes."""
        return [r for group in self.groups for r in self._raises_of(group, bits)]

    def _raises_of(self, group: tuple[int, ...], bits: int | None) -> Iterator[Raise]:
        """Yield the successive raises of one layer, the largest gain first.

        Sorting a chain must not change their order. Therefore no raise has a larger
        gain than the one before, and none has size zero after one that has not.
        """
        now, paid = self.floors[group[0]], 0
        gain: Fraction | float = math.inf
        while raises := [*self._raises_from(group, now, bits)]:
            best = max(raises, key=lambda r: (r.gain, MEMORY.index(r.memory)))
            gain, paid = min(gain, best.gain), min(paid + best.size, 1)
            yield best._replace(gain=gain, size=max(best.size, paid))
            now = best.memory

    def _raises_from(
        self, group: tuple[int, ...], now: str, bits: int | None
    ) -> Iterator[Raise]:
        """Yield the raises from a strategy that save more time than noise, or store."""
        for memory in self._options(group, now)[1:]:
            size = sum(self._size(i, now, memory) for i in group)
            pairs = ((self.times[i][now], self.times[i][memory]) for i in group)
            saved = sum((a - b for a, b in pairs), Fraction(0))
            faster = saved > 0 and self._faster(group, now, memory)
            small = bits is None or size.bit_length() <= bits
            if small and (memory == "store" or faster):
                yield Raise(group, memory, size, saved / max(size, 1))

    def _faster(self, group: tuple[int, ...], now: str, memory: str) -> bool:
        costs = [self.costs[i] for i in group]
        saved = math.fsum(c.seconds[now] - c.seconds[memory] for c in costs)
        return saved > math.fsum(c.noise for c in costs)

    def _size(self, i: int, now: str, memory: str) -> int:
        """Return the bytes that a raise keeps in addition.

        A checkpoint keeps nothing more if its input is an anchor or that of the pass.
        """
        if memory == "checkpoint" and (not i or i in self.anchors):
            return 0
        before, after = (_kept_alone(self.costs[i], m) for m in (now, memory))
        return max(after - before, 0)


def _places_of_modules(modules: Sequence[InvertibleModule]) -> list[tuple[int, ...]]:
    """Return the indices of each module in the pass."""
    places: dict[int, list[int]] = {}
    for i, module in enumerate(modules):
        places.setdefault(id(module), []).append(i)
    return [tuple(group) for group in places.values()]


def least_of(cost: Cost, eps: float) -> str:
    """Return the lowest strategy with which the input of a layer is correct."""
    if cost.round_trip <= tolerance(eps, eps):
        return "invert"
    return "offload" if "offload" in cost.seconds else "checkpoint"


def settled(costs: Sequence[Cost]) -> list[Times]:
    """Return the time of each strategy of each layer, without the noise.

    The rate of a strategy is the time that it takes longer than `"store"`, divided by
    the bytes that it saves. Rates that overlap within their noise are replaced by their
    common mean. No strategy is faster than `"store"`. The times are fractions, so that
    sums of equal times are equal in any order of addition.
    """
    found = [
        dict.fromkeys(cost.seconds, Fraction(cost.seconds["store"])) for cost in costs
    ]
    for rate in _rates(costs):
        extra = Fraction(math.fsum(point.extra for point in rate))
        size = sum(point.size for point in rate)
        for point in rate:
            found[point.place][point.memory] += extra * point.size / size
    return found


class _Point(NamedTuple):
    place: int
    memory: str
    size: int
    extra: float
    noise: float

    @property
    def low(self) -> float:
        return (self.extra - self.noise) / self.size

    @property
    def high(self) -> float:
        return (self.extra + self.noise) / self.size


def _rates(costs: Sequence[Cost]) -> list[list[_Point]]:
    """Group strategies whose rates, in seconds per byte, overlap within their noise."""
    points = [
        _Point(
            i,
            memory,
            max(_kept_alone(cost, "store") - _kept_alone(cost, memory), 1),
            max(cost.seconds[memory] - cost.seconds["store"], 0.0),
            cost.noise,
        )
        for i, cost in enumerate(costs)
        for memory in cost.seconds
        if memory != "store"
    ]
    groups: list[list[_Point]] = []
    high = -math.inf
    for point in sorted(points, key=lambda point: point.low):
        if point.low > high:
            groups.append([])
        groups[-1].append(point)
        high = max(high, point.high)
    return groups


def total(times: Sequence[Times], strategies: Sequence[str]) -> Fraction:
    """Predict the time of a step, in seconds."""
    pairs = zip(times, strategies, strict=True)
    return sum((t[strategy] for t, strategy in pairs), Fraction(0))


def _kept_alone(cost: Cost, strategy: str) -> int:
    """Return the bytes that are kept of a layer, including its input if stored."""
    return kept(cost, strategy, first=strategy == "store")


def kept(cost: Cost, strategy: str, *, first: bool) -> int:
    """Return the bytes that are kept of a layer from forward to backward.

    Args:
        cost: The cost of the layer.
        strategy: Its strategy.
        first: Whether its input is kept to rebuild the states below.
    """
    stored = cost.stored if strategy == "store" else 0
    held = (
        first or strategy == "checkpoint" or (strategy == "store" and cost.holds_input)
    )
    return stored + held * cost.state


def peak(
    costs: Sequence[Cost], strategies: Sequence[str], anchors: frozenset[int]
) -> int:
    """Predict the peak of activations in a step, in bytes.

    The input of the pass belongs to the caller and is not counted.
    """
    below, most, above = 0, 0, ""
    for i, (cost, strategy) in enumerate(zip(costs, strategies, strict=True)):
        row = strategy == "store" != above  # the first stored layer of a row
        cost = _without_input(cost, i)
        held = kept(cost, strategy, first=row or i in anchors)
        forward = cost.forward + cost.output + cost.state
        backward = 2 * cost.output + cost.work[strategy]
        most = max(most, below + held + max(forward, backward))
        below, above = below + held, strategy
    return most


def _without_input(cost: Cost, place: int) -> Cost:
    """Return the cost without the input of the pass, which belongs to the caller."""
    return cost if place else cost._replace(state=0)


def amount(count: int) -> str:
    """Format a number of bytes with three digits and a unit."""
    rounded = int(float(f"{count:.3g}"))
    power = min(max(len(str(rounded)) - 1, 0) // 3, 4)
    return f"{rounded / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


class Automatic:
    """Measures the layers of a pass once, and plans a memory strategy for each.

    Args:
        budget: The bytes that activations may take, or a fraction of the memory of the
            device.

    Raises:
        ValueError: If the budget is not a positive number of bytes, or a fraction
            between 0 and 1.
    """

    def __init__(self, budget: float) -> None:
        # the last ones used are at the end
        self.costs: OrderedDict[Any, list[Cost]] = OrderedDict()
        self.plans: OrderedDict[Any, Plan] = OrderedDict()
        self.latest: Plan | None = None
        self.budget = budget

    @property
    def budget(self) -> float:
        """The budget in bytes, or as a fraction of the device's memory."""
        return self._budget

    @budget.setter
    def budget(self, budget: float) -> None:
        number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
        if (
            not number
            or not 0 < budget < math.inf
            or (budget >= 1 and not float(budget).is_integer())
        ):
            raise ValueError(
                f"budget is {budget!r}, but must be a positive number of bytes, or a "
                f"fraction of the device's memory between 0 and 1"
            )
        self._budget = budget

    def assign(
        self,
        chain: Pass,
        state: Any,
        context: Context,
        anchors: Anchors,
        dtype: torch.dtype | None = None,
    ) -> tuple[str, ...]:
        """Return the strategy of each layer of a pass, in order.

        Layers are measured again if dtypes or devices change, if a layer is frozen,
        unfrozen or switched between training and evaluation, or if an input is larger
        along an axis, or smaller by more than half, than those measured so far. An
        input that is a little smaller takes less, so that the plan holds for it too.
        Only the plans used last are kept.

        Args:
            chain: The pass.
            state: Its input.
            context: Further arguments of its layers.
            anchors: Which states are kept anyway.
            dtype: The dtype to which the state is converted first, if any.
        """
        steps = elementary(chain.steps)
        tensors = as_tensors(state)
        states = [Kind.of(t, dtype) for t in tensors]
        kinds = (*states, *map(Kind.of, tensors_in(context)))
        configurations = tuple(map(_configuration, steps))
        places = anchors.places(len(steps))
        least = tuple(_least_memory(chain.steps))
        eps = max(eps_of(kind.dtype) for kind in states)

        def planned(measured: Any) -> Plan:
            key = measured, least, places, self.budget
            costs = self.costs[measured]
            _keep(self.costs, measured, costs)
            if key not in self.plans:
                modules, budget = [s.module for s in steps], self._bytes(state_device)
                _keep(self.plans, key, plan(costs, modules, places, budget, eps, least))
            _keep(self.plans, key, self.plans[key])
            return self.plans[key]

        state_device, exact = tensors[0].device, (kinds, configurations)
        similar = self._measured(kinds, configurations)
        if similar is not None:
            # where a larger input is refused, this one may fit
            with nullcontext() if similar == exact else suppress(ValueError):
                self.latest = planned(similar)
                return self.latest.strategies
        if exact not in self.costs:
            state = state if dtype is None else converted(state, dtype)
            _keep(self.costs, exact, measure_costs(steps, state, context))
        self.latest = planned(exact)
        return self.latest.strategies

    def _measured(self, kinds: Any, configurations: Any) -> Any:
        """Return the key of the smallest measurement that holds for some inputs."""
        covering = [
            (sum(kind.shape.numel() for kind in measured), i, (measured, layers))
            for i, (measured, layers) in enumerate([*self.costs])
            if layers == configurations and _cover(measured, kinds)
        ]
        return min(covering)[-1] if covering else None

    def _bytes(self, device: torch.device) -> int:
        unit = 1 if self.budget >= 1 else capacity(device)
        return int(self.budget * unit)


class Kind(NamedTuple):
    """What the cost of an input depends on."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> Kind:
        """Return the kind of a tensor, in `dtype` if it will be converted to one."""
        kept = tensor.dtype if dtype is None else as_kind(dtype, tensor)
        return cls(tensor.shape, kept, tensor.device)


def _cover(measured: Sequence[Kind], kinds: Sequence[Kind]) -> bool:
    """Return whether inputs are as large as those measured, or a little smaller."""
    return len(measured) == len(kinds) and all(
        (large.dtype, large.device) == (small.dtype, small.device)
        and len(large.shape) == len(small.shape)
        and all(map(operator.ge, large.shape, small.shape))
        and SIMILAR * small.shape.numel() >= large.shape.numel()
        for large, small in zip(measured, kinds, strict=True)
    )


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Keep a value as the last one used, and drop those that were not used for long."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)


def capacity(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _least_memory(steps: Sequence[Step], outside: str = "invert") -> Iterator[str]:
    """Yield the lowest strategy of each layer: its own, or that of its containers.

    Strategies are ordered as in `MEMORY`, by how much they keep. The highest of
    these counts.
    """
    for step in steps:
        own = step.module.memory
        memory = max(outside, own if own in MEMORY else outside, key=MEMORY.index)
        inner = inner_steps(step)
        if inner is None:
            yield memory
        else:
            yield from _least_memory(inner, memory)


def _configuration(step: Step) -> tuple[Any, ...]:
    trained = [
        parameter.requires_grad
        for part in modules_inside(step.module)
        for parameter in parameters_of(part).values()
        if parameter is not None
    ]
    return id(step.module), step.direction, step.module.training, *trained
