"""Plan a memory strategy for each layer: the fastest step within a budget of bytes.

The candidates do not depend on the budget. A plan is the fastest candidate whose peak
fits, so a larger budget never plans a slower step or a smaller peak. The last candidate
stores everything: what fits wholly stored is wholly stored.

Measured times are noisy, and a plan follows them only beyond their noise. Layers that
save the same time for each byte, within noise, are raised from the last to the first:
the last ones free their activations before anything is rebuilt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from invtorch.engine.guard.tolerance import tolerance
from invtorch.memory.costs import Cost
from invtorch.module import MEMORY, InvertibleModule

Times: TypeAlias = dict[str, Fraction]


class Plan(NamedTuple):
    """A memory strategy for every layer; `print` shows it as a table.

    Attributes:
        costs: The measured cost of each layer.
        strategies: The strategy of each layer.
        anchors: The indices of the states that are kept in any case.
        budget: The bytes that activations may take.
        peak: The bytes that they are predicted to take.
        seconds: The predicted time of a step of these layers.
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
    """A layer that is given a strategy which keeps more and takes less time.

    Attributes:
        places: Where the layer is in the pass; a shared one has several places.
        memory: The strategy it is given.
        size: The bytes that this keeps.
        gain: The seconds that this saves for each byte.
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
        modules: The layers; one that occurs twice has one strategy.
        anchors: The indices of the states that are kept in any case.
        budget: The bytes that activations may take.
        eps: The eps of the state's dtype.
        asked: The strategy that each layer has at least; by default its own `memory`.

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
    """The layers of a pass, and the orders in which they can be raised.

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
        self.groups = _shared(modules)
        self.floors = ["invert"] * len(costs)
        for group in self.groups:
            floor = self._floor(group, asked, eps)
            for i in group:
                self.floors[i] = floor

    def chains(self) -> Iterator[list[Raise]]:
        """Yield the orders in which layers are raised.

        One order goes by the time saved for each byte, with equals from the last layer
        to the first; one goes from the last layer to the first. Both end with
        everything stored. Where the budget is small, a raise that keeps much would end
        them early: more orders leave out ever smaller raises.
        """
        sizes = {r.size.bit_length() for r in self._raises(None)}
        for bits in (None, *sorted(sizes, reverse=True)[1:]):
            raises = self._raises(bits)
            yield sorted(raises, key=lambda r: (-r.gain, -max(r.places)))
            yield sorted(raises, key=lambda r: (r.size > 0, -max(r.places)))

    def longest(self, chain: Sequence[Raise], budget: int) -> list[str] | None:
        """Raise as many layers of a chain as the budget permits; `None` if none do."""
        for strategies, sure in self._prefixes(chain):
            if sure <= budget and peak(self.costs, strategies, self.anchors) <= budget:
                return list(strategies)
        return None

    def least_peak(self) -> int:
        """Return the smallest peak of all candidates."""
        least = peak(self.costs, self.floors, self.anchors)
        for chain in self.chains():
            for strategies, sure in self._prefixes(chain):
                if sure < least:
                    least = min(least, peak(self.costs, strategies, self.anchors))
        return least

    def _prefixes(self, chain: Sequence[Raise]) -> Iterator[tuple[list[str], int]]:
        """Yield strategies and bytes they keep for sure, from the whole chain down."""
        strategies, undo = list(self.floors), []
        for r in chain:
            undo.append((r.places, strategies[r.places[0]]))
            self._set(strategies, r.places, r.memory)
        sure = self._sure(range(len(strategies)), strategies)
        yield strategies, sure
        for places, memory in reversed(undo):
            sure -= self._sure(places, strategies)
            self._set(strategies, places, memory)
            sure += self._sure(places, strategies)
            yield strategies, sure

    @staticmethod
    def _set(strategies: list[str], places: Iterable[int], memory: str) -> None:
        for i in places:
            strategies[i] = memory

    def _sure(self, places: Iterable[int], strategies: Sequence[str]) -> int:
        return sum(
            kept(_given(self.costs[i], i), strategies[i], first=False) for i in places
        )

    def _floor(self, group: tuple[int, ...], asked: Sequence[str], eps: float) -> str:
        """Return the strategy that keeps least, of those a layer can have."""
        each = [m for i in group for m in (asked[i], least_of(self.costs[i], eps))]
        return self._options(group, max(each, key=MEMORY.index))[0]

    def _options(self, group: tuple[int, ...], least: str) -> list[str]:
        """Return the strategies that were measured, from `least` up."""
        return [
            memory
            for memory in MEMORY[MEMORY.index(least) :]
            if all(memory in self.costs[i].seconds for i in group)
        ]

    def _raises(self, bits: int | None) -> list[Raise]:
        """Return what each layer can be raised to, if that keeps less than 2**bits."""
        return [r for group in self.groups for r in self._of_group(group, bits)]

    def _of_group(self, group: tuple[int, ...], bits: int | None) -> Iterator[Raise]:
        """Yield one raise after another, the best gain first, in an order that lasts.

        A later one never comes before an earlier one in a chain, so none has more gain,
        and none is free after one that is not.
        """
        now, paid = self.floors[group[0]], 0
        gain: Fraction | float = math.inf
        while raises := [*self._from(group, now, bits)]:
            best = max(raises, key=lambda r: (r.gain, MEMORY.index(r.memory)))
            gain, paid = min(gain, best.gain), min(paid + best.size, 1)
            yield best._replace(gain=gain, size=max(best.size, paid))
            now = best.memory

    def _from(
        self, group: tuple[int, ...], now: str, bits: int | None
    ) -> Iterator[Raise]:
        """Yield each raise from one strategy that saves time for sure, or stores."""
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
        """Return the bytes of a raise; an anchor, or the caller, keeps the state."""
        if memory == "checkpoint" and (not i or i in self.anchors):
            return 0
        before, after = (_alone(self.costs[i], m) for m in (now, memory))
        return max(after - before, 0)


def _shared(modules: Sequence[InvertibleModule]) -> list[tuple[int, ...]]:
    """Group the places of each module."""
    places: dict[int, list[int]] = {}
    for i, module in enumerate(modules):
        places.setdefault(id(module), []).append(i)
    return [tuple(group) for group in places.values()]


def least_of(cost: Cost, eps: float) -> str:
    """Return the strategy that keeps least of a layer and brings its input back."""
    if cost.round_trip <= tolerance(eps, eps):
        return "invert"
    return "offload" if "offload" in cost.seconds else "checkpoint"


def settled(costs: Sequence[Cost]) -> list[Times]:
    """Return the time of each strategy of each layer, without the noise.

    What a layer takes longer than if it were stored is divided by the bytes that this
    saves. Rates that overlap within their noise are one rate. Storing is never slower
    than rebuilding. The times are fractions: equal ones must compare as equal, in
    whatever order they are added up.
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
    """Group what overlaps in seconds a byte, each with its noise."""
    points = [
        _Point(
            i,
            memory,
            max(_alone(cost, "store") - _alone(cost, memory), 1),
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


def _alone(cost: Cost, strategy: str) -> int:
    """Return the bytes that are kept of a layer, its input among them if stored."""
    return kept(cost, strategy, first=strategy == "store")


def kept(cost: Cost, strategy: str, *, first: bool) -> int:
    """Return the bytes that are kept of a layer from forward to backward.

    Args:
        cost: The cost of the layer.
        strategy: Its strategy.
        first: Whether its input is kept for the layers below.
    """
    stored = cost.stored if strategy == "store" else 0
    held = (
        first or strategy == "checkpoint" or (strategy == "store" and cost.holds_input)
    )
    return stored + held * cost.state


def peak(
    costs: Sequence[Cost], strategies: Sequence[str], anchors: frozenset[int]
) -> int:
    """Predict the most bytes that activations take at any time of a step.

    The input of the pass is the caller's and does not count.
    """
    below, most, above = 0, 0, ""
    for i, (cost, strategy) in enumerate(zip(costs, strategies, strict=True)):
        row = strategy == "store" != above  # the first of those in a row
        cost = _given(cost, i)
        held = kept(cost, strategy, first=row or i in anchors)
        forward = cost.forward + cost.output + cost.state
        backward = 2 * cost.output + cost.work[strategy]
        most = max(most, below + held + max(forward, backward))
        below, above = below + held, strategy
    return most


def _given(cost: Cost, place: int) -> Cost:
    """Leave out the input of the pass, which is the caller's."""
    return cost if place else cost._replace(state=0)


def amount(count: int) -> str:
    """Write a number of bytes."""
    rounded = int(float(f"{count:.3g}"))
    power = min(max(len(str(rounded)) - 1, 0) // 3, 4)
    return f"{rounded / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
