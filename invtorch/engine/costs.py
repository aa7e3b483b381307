"""What each layer of a pass costs under each strategy: bytes, seconds, digits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invtorch.base import Pass, Step
from invtorch.engine.anchors import Anchors
from invtorch.engine.fingerprint import size
from invtorch.engine.frame import Tensors, as_tensors, differentiable
from invtorch.engine.memory import Memory, bytes_of, measure_two
from invtorch.engine.strategies import Strategy, run

REPETITIONS = 5


class Cost(NamedTuple):
    """What one layer costs; bytes are those of activations, gradients left out.

    Attributes:
        label: Index and class of the layer.
        state: Bytes of its input.
        output: Bytes of its output.
        stored: Bytes that autograd keeps of it, besides its input.
        holds_input: Whether autograd keeps its input too.
        forward: Bytes above those when it is evaluated.
        work: Bytes that its backward pass takes for a while, by strategy.
        seconds: Time of its forward and backward pass, by strategy.
        round_trip: Relative distance of its rebuilt input from the true one.
    """

    label: str
    state: int
    output: int
    stored: int
    holds_input: bool
    forward: int
    work: dict[str, int]
    seconds: dict[str, float]
    round_trip: float


def measure_costs(
    steps: Sequence[Step], state: Any, context: tuple[Any, ...]
) -> list[Cost]:
    """Measure every step on the state that reaches it; equal ones are measured once.

    Modules are copied, so that nothing of them changes, nor does the random state.
    """
    known: dict[Any, Cost] = {}
    found = []
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        for i, step in enumerate(steps):
            key = _signature(step, state)
            if key not in known:
                known[key] = _measure(step, state, context)
            label = f"layer {i} ({type(step.module).__name__})"
            found.append(known[key]._replace(label=label))
            with torch.no_grad():
                module = deepcopy(step.module)
                state = step._replace(module=module)(state, context)
    return found


def _signature(step: Step, state: Any) -> Any:
    """Return what two steps have in common that cost the same."""
    parameters = ((p.shape, p.dtype) for p in step.module.parameters())
    tensors = ((t.shape, t.dtype, t.stride()) for t in as_tensors(state))
    kind = type(step.module), repr(step.module), step.module.training
    return *kind, step.direction, step.context, *parameters, *tensors


def _measure(step: Step, state: Any, context: tuple[Any, ...]) -> Cost:
    step = step._replace(module=deepcopy(step.module))
    step.module.memory = None
    tensors = as_tensors(state)
    trial = _Trial(step, tensors, isinstance(state, Tensor), context)
    strategies = ["store", "checkpoint", "invert"]
    strategies += ["offload"] if tensors[0].is_cuda else []
    counted = {name: trial.count(name) for name in strategies}
    outside, (inside, _) = counted["store"][0], trial.count("store", copies=1)
    return Cost(
        label="",
        state=bytes_of(tensors),
        output=trial.output,
        stored=outside.live - trial.output,
        holds_input=inside.live > outside.live,
        forward=outside.peak - outside.live,
        work={name: backward.peak for name, (_, backward) in counted.items()},
        seconds=trial.seconds(strategies),
        round_trip=trial.round_trip(),
    )


class _Trial:
    """One layer, run alone under each strategy."""

    def __init__(
        self, step: Step, state: Tensors, single: bool, context: tuple[Any, ...]
    ) -> None:
        self.walk = Pass([step])
        self.step = step
        self.single = single
        self.context = tuple(_detached(c) for c in context)
        self.state = tuple(t.detach().clone() for t in state)
        self.device = state[0].device
        for t in self.state:
            t.requires_grad_(differentiable(t))
        with torch.no_grad():
            outputs = as_tensors(step(self._given(0), self.context))
        self.output = bytes_of(outputs)
        self.gradients = [torch.ones_like(t) for t in outputs if differentiable(t)]

    def count(self, memory: str, copies: int = 0) -> tuple[Memory, Memory]:
        """Count a forward pass, and then a backward pass above what that left.

        Args:
            memory: The strategy.
            copies: 1 if it starts from a copy of the state that nobody else holds.
        """
        self._backward(self._forward(memory, copies))  # allocates gradients
        return measure_two(
            lambda: self._forward(memory, copies), self._backward, self.device
        )

    def seconds(self, strategies: Sequence[str]) -> dict[str, float]:
        """Time a forward and backward pass under each strategy, by turns.

        The least of some times is what the load of the machine spoils least. Evaluating
        nothing again is never slower than evaluating it.
        """
        found = dict.fromkeys(strategies, math.inf)
        for _ in range(REPETITIONS):
            for name in strategies:
                found[name] = min(found[name], self._timed(name))
        return found | {"store": min(found.values())}

    def round_trip(self) -> float:
        """Return how far the rebuilt state is from the true one, relatively."""
        with torch.no_grad():
            back = self.step.inverse(
                self.step(self._given(0), self.context), self.context
            )
            errors = [b - x for b, x in zip(as_tensors(back), self.state, strict=True)]
            scale = float(size(self.state).norm())
            return float(size(tuple(errors)).norm()) / scale if scale else 0.0

    def _timed(self, memory: str) -> float:
        start = self._clock()
        self._backward(self._forward(memory, 0))
        return self._clock() - start

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _given(self, copies: int) -> Any:
        state = tuple(t * 1 for t in self.state) if copies else self.state
        return state[0] if self.single else state

    def _forward(self, memory: str, copies: int) -> Tensors:
        strategy = Strategy(memory, Anchors(0), None, 1, None)
        with torch.enable_grad():
            output = run(strategy, self.walk, self._given(copies), self.context)
        return as_tensors(output)

    def _backward(self, outputs: Tensors) -> None:
        ends = [t for t in outputs if t.requires_grad]
        torch.autograd.backward(ends, self.gradients[: len(ends)])


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
