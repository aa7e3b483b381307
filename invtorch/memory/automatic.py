"""`memory="auto"`: one plan for each input shape, made when the shape first occurs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from invtorch.composite import Pass, Step, elementary, inner_steps
from invtorch.engine.checks import as_tensors
from invtorch.engine.guard.anchors import Anchors
from invtorch.engine.restore.context import tensors_in
from invtorch.memory.costs import Cost, measure_costs
from invtorch.memory.plan import Plan, plan
from invtorch.module import MEMORY
from invtorch.precision import eps_of


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
        self.costs: dict[Any, list[Cost]] = {}
        self.plans: dict[Any, Plan] = {}
        self.latest: Plan | None = None
        self.budget = budget

    @property
    def budget(self) -> float:
        """The budget in bytes, or as a fraction of the device's memory."""
        return self._budget

    @budget.setter
    def budget(self, budget: float) -> None:
        number = isinstance(budget, (int, float)) and budget > 0
        if not number or (budget >= 1 and not float(budget).is_integer()):
            raise ValueError(
                f"budget is {budget!r}, but must be a positive number of bytes, or a "
                f"fraction of the device's memory between 0 and 1"
            )
        self._budget = budget

    def assign(
        self, chain: Pass, state: Any, context: tuple[Any, ...], anchors: Anchors
    ) -> tuple[str, ...]:
        """Return the strategy of each layer of a pass, in order.

        Layers are measured again if shapes, dtypes or devices change, or if a layer is
        frozen, unfrozen or switched between training and evaluation.
        """
        steps = elementary(chain.steps)
        tensors = as_tensors(state)
        inputs = (*tensors, *tensors_in(context))
        kinds = tuple((t.shape, t.dtype, t.device) for t in inputs)
        configurations = tuple(map(_configuration, steps))
        places = anchors.places(len(steps))
        least = tuple(_least_memory(chain.steps))
        key = kinds, configurations, least, places, self.budget
        if key not in self.plans:
            if (kinds, configurations) not in self.costs:
                self.costs[kinds, configurations] = measure_costs(steps, state, context)
            self.plans[key] = plan(
                self.costs[kinds, configurations],
                [step.module for step in steps],
                places,
                self._bytes(tensors[0].device),
                max(eps_of(t.dtype) for t in tensors),
                least,
            )
        self.latest = self.plans[key]
        return self.latest.strategies

    def _bytes(self, device: torch.device) -> int:
        unit = 1 if self.budget >= 1 else capacity(device)
        return int(self.budget * unit)


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
    trained = [p.requires_grad for p in step.module.parameters()]
    return id(step.module), step.direction, step.module.training, *trained
