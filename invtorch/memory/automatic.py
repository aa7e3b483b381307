"""`memory="auto"`: a plan for each kind of input, made when it is first seen."""

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
    """Measures the layers of a pass once, and plans the strategy of each.

    Args:
        budget: Bytes that activations may take, or a fraction of the device's memory.

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
        """Bytes, or a fraction of the device's memory."""
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
        """Return the strategies of the layers of a pass, in their order."""
        steps = elementary(chain.steps)
        tensors = as_tensors(state)
        given = (*tensors, *tensors_in(context))
        kinds = tuple((t.shape, t.dtype, t.device) for t in given)
        modes = tuple(map(_mode, steps))
        places = anchors.places(len(steps))
        asked = tuple(_asked(chain.steps))
        seen = kinds, modes, asked, places, self.budget
        if seen not in self.plans:
            if (kinds, modes) not in self.costs:
                self.costs[kinds, modes] = measure_costs(steps, state, context)
            self.plans[seen] = plan(
                self.costs[kinds, modes],
                [step.module for step in steps],
                places,
                self._bytes(tensors[0].device),
                max(eps_of(t.dtype) for t in tensors),
                asked,
            )
        self.latest = self.plans[seen]
        return self.latest.strategies

    def _bytes(self, device: torch.device) -> int:
        whole = 1 if self.budget >= 1 else capacity(device)
        return int(self.budget * whole)


def capacity(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _asked(steps: Sequence[Step], outside: str = "invert") -> Iterator[str]:
    """Yield what each layer, or a container around it, asks to keep at least."""
    for step in steps:
        own = step.module.memory
        memory = max(outside, own if own in MEMORY else outside, key=MEMORY.index)
        inner = inner_steps(step)
        if inner is None:
            yield memory
        else:
            yield from _asked(inner, memory)


def _mode(step: Step) -> tuple[Any, ...]:
    trained = [p.requires_grad for p in step.module.parameters()]
    return id(step.module), step.direction, step.module.training, *trained
