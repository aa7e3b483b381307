"""Which strategy for which layer, for the fastest step within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from invtorch.engine.guard.tolerance import tolerance
from invtorch.memory.costs import Cost
from invtorch.module import MEMORY, InvertibleModule


class Plan(NamedTuple):
    """A strategy for every layer; `print` shows it as a table.

    Attributes:
        costs: What was measured of each layer.
        strategies: What is kept of each layer.
        anchors: The indices of the states that are kept besides.
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
        fastest = seconds(self.costs, ["store"] * len(self.costs))
        lines.append(
            f"peak {amount(self.peak)} of a budget of {amount(self.budget)}, "
            f"{1e3 * self.seconds:.1f} ms a step (all stored: {1e3 * fastest:.1f} ms)"
        )
        return "\n".join(lines)


def plan(
    costs: Sequence[Cost],
    modules: Sequence[InvertibleModule],
    anchors: frozenset[int],
    budget: int,
    eps: float,
) -> Plan:
    """Choose what to keep of each layer.

    All start with what keeps least, or what they ask for themselves. Then layers are
    raised to a strategy that saves time, as long as the predicted peak stays within the
    budget: once from the last layer to the first, whose activations are freed before
    anything is rebuilt, and once in the order of seconds saved a byte. The faster one
    of the two is taken.

    Args:
        costs: What was measured.
        modules: The layers; one that occurs twice has one strategy.
        anchors: The states that are kept in any case.
        budget: Bytes for activations.
        eps: The eps of the state's dtype.

    Raises:
        ValueError: If nothing fits in the budget.
    """
    least = [
        max(least_of(cost, eps), module.memory or "invert", key=MEMORY.index)
        for cost, module in zip(costs, modules, strict=True)
    ]
    smallest = peak(costs, least, anchors)
    if smallest > budget:
        raise ValueError(
            f"budget is {budget} bytes, but the activations of a step take at least "
            f"{smallest}: allow more, keep fewer anchors ({len(anchors)} now), or make "
            f"the batch smaller"
        )
    found = [least]
    for order in (from_the_top(costs), by_ratio(costs)):
        found.append(raised(costs, modules, anchors, budget, least, order))
    best = min(found, key=lambda strategies: seconds(costs, strategies))
    return Plan(
        costs,
        tuple(best),
        anchors,
        budget,
        peak(costs, best, anchors),
        seconds(costs, best),
    )


def least_of(cost: Cost, eps: float) -> str:
    """Return what keeps least of a layer and brings its input back."""
    if cost.round_trip <= tolerance(eps, eps):
        return "invert"
    return "offload" if "offload" in cost.seconds else "checkpoint"


def raised(
    costs: Sequence[Cost],
    modules: Sequence[InvertibleModule],
    anchors: frozenset[int],
    budget: int,
    start: Sequence[str],
    order: Iterator[tuple[int, str]],
) -> list[str]:
    """Raise one layer after another as long as the budget holds."""
    strategies = list(start)
    for i, strategy in order:
        same = [j for j, module in enumerate(modules) if module is modules[i]]
        trial = list(strategies)
        for j in same:
            trial[j] = strategy
        no_slower = seconds(costs, trial) <= seconds(costs, strategies)
        if no_slower and peak(costs, trial, anchors) <= budget:
            strategies = trial
    return strategies


def from_the_top(costs: Sequence[Cost]) -> Iterator[tuple[int, str]]:
    """Store the last layers first, then try what keeps less."""
    for strategy in ("store", "checkpoint", "offload"):
        for i in reversed(range(len(costs))):
            if strategy in costs[i].seconds:
                yield i, strategy


def by_ratio(costs: Sequence[Cost]) -> Iterator[tuple[int, str]]:
    """Order what can be raised by the seconds that it saves a byte."""

    def gain(candidate: tuple[int, str]) -> float:
        i, strategy = candidate
        saved = costs[i].seconds["invert"] - costs[i].seconds[strategy]
        return saved / max(kept(costs[i], strategy, first=False), 1)

    candidates = [
        (i, strategy)
        for i in reversed(range(len(costs)))
        for strategy in costs[i].seconds
        if strategy != "invert"
    ]
    yield from sorted(candidates, key=gain, reverse=True)


def seconds(costs: Sequence[Cost], strategies: Sequence[str]) -> float:
    """Predict the time of a step."""
    pairs = zip(costs, strategies, strict=True)
    return sum(cost.seconds[strategy] for cost, strategy in pairs)


def kept(cost: Cost, strategy: str, *, first: bool) -> int:
    """Return the bytes that are kept of a layer from forward to backward.

    Args:
        cost: The layer.
        strategy: Its strategy.
        first: Whether its input is kept for the layers below, too.
    """
    stored = cost.stored if strategy == "store" else 0
    held = (
        first or strategy == "checkpoint" or (strategy == "store" and cost.holds_input)
    )
    return stored + held * cost.state


def peak(
    costs: Sequence[Cost], strategies: Sequence[str], anchors: frozenset[int]
) -> int:
    """Predict the most that activations take during a step, in bytes.

    The input of the pass is the caller's and does not count.
    """
    below, most, above = 0, 0, ""
    for i, (cost, strategy) in enumerate(zip(costs, strategies, strict=True)):
        row = strategy == "store" != above  # the first of those in a row
        cost = cost if i else cost._replace(state=0)  # the caller's
        held = kept(cost, strategy, first=row or i in anchors)
        forward = cost.forward + cost.output + cost.state
        backward = 2 * cost.output + cost.work[strategy]
        most = max(most, below + held + max(forward, backward))
        below, above = below + held, strategy
    return most


def amount(count: int) -> str:
    """Write a number of bytes."""
    rounded = int(float(f"{count:.3g}"))
    power = min(max(len(str(rounded)) - 1, 0) // 3, 4)
    return f"{rounded / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
