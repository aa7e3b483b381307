"""Measure the memory and time of each layer of a pass under each strategy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from invtorch._torch import modules_inside, tree_leaves
from invtorch.composite import Pass, Step
from invtorch.engine.checks import as_tensors, check_shapes
from invtorch.engine.dispatch import Store
from invtorch.engine.eager.tape import Tape
from invtorch.engine.guard.fingerprint import mark
from invtorch.engine.restore.context import objects_in, tensors_in
from invtorch.engine.restore.generators import generators_of
from invtorch.engine.restore.random_numbers import all_random_states_kept
from invtorch.memory.measure import Memory, bytes_of, measure_two
from invtorch.precision import is_differentiable
from invtorch.recording import Context, Recording
from invtorch.replay import Tensors

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
REPETITIONS = 7  # of each timing: load makes single ones longer, the shortest counts
NOISE = 0.1  # relative difference between timings of the same layer at other moments


class Cost(NamedTuple):
    """The cost of one layer; bytes are those of activations, without gradients.

    Attributes:
        label: Index and class of the layer.
        state: Bytes of its input.
        output: Bytes of its output.
        stored: Bytes that autograd saves for it, besides its input.
        holds_input: Whether autograd saves its input too.
        forward: Temporary bytes of its forward pass, above those.
        work: Temporary bytes of its backward pass, by strategy.
        seconds: Time of its forward and backward pass, by strategy.
        round_trip: Relative error of its rebuilt input.
        noise: Largest error of a difference of two of these times, in seconds.
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
    noise: float = 0.0


def measure_costs(steps: Sequence[Step], state: Any, context: Context) -> list[Cost]:
    """Measure every step on the state that it receives in the pass.

    Bytes and seconds of equal layers are measured once. The round trip is measured for
    every layer, because it depends on the values of the parameters.

    Modules, state and context are copied and random states restored, so that the
    measurement has no side effects. The caller's hooks of saved tensors, such as those
    of `torch.utils.checkpoint`, are not called.

    Raises:
        RuntimeError: If a layer has parameters without a shape.
    """
    known: dict[Any, Cost] = {}
    costs = []
    parts = [part for step in steps for part in modules_inside(step.module)]
    # a copy of a module may draw from a generator of the original: a global variable,
    # or one that a function encloses
    shared = generators_of(parts, objects_in(context))
    with (
        all_random_states_kept(shared),
        saved_tensors_hooks(_identity, _identity),
    ):
        for i, step in enumerate(steps):
            label = f"layer {i} ({type(step.module).__name__})"
            check_shapes(label, [*step.module.parameters(), *step.module.buffers()])
            key = _signature(step, state)
            if key not in known:
                known[key] = _measure(step, state, context)
            module, copied_state, copied_context = copied(step.module, state, context)
            copy = step._replace(module=module)
            with torch.no_grad():
                state = copy(copied_state, copied_context)
                error = _round_trip(copy, copied_state, copied_context)
            costs.append(known[key]._replace(label=label, round_trip=error))
    return costs


def _round_trip(step: Step, state: Any, context: Context) -> float:
    """Return the relative error of the rebuilt state."""
    given, back = as_tensors(state), step.inverse(step(state, context), context)
    pairs = zip(as_tensors(back), given, strict=True)
    errors = [_subtractable(rebuilt) - _subtractable(x) for rebuilt, x in pairs]
    scale, error = (float(mark(some)[:, -1].norm()) for some in (given, tuple(errors)))
    return error / scale if scale else 0.0


def _signature(step: Step, state: Any) -> Any:
    """Return a key that is equal for steps of equal cost."""
    parameters = ((p.shape, p.dtype, p.requires_grad) for p in step.module.parameters())
    tensors = ((t.shape, t.dtype, t.stride()) for t in as_tensors(state))
    kind = type(step.module), repr(step.module), step.module.training
    return *kind, step.direction, step.context, *parameters, *tensors


def _measure(step: Step, state: Any, context: Context) -> Cost:
    module, state, context = copied(step.module, state, context)
    module.memory = None
    tensors = as_tensors(state)
    trial = _Trial(step._replace(module=module), state, context)
    strategies = ["store", "checkpoint", "invert"]
    strategies += ["offload"] if tensors[0].is_cuda else []
    counted = {name: trial.count(name) for name in strategies}
    outside, (inside, _) = counted["store"][0], trial.count("store", copies=1)
    seconds, noise = trial.seconds(strategies)
    return Cost(
        label="",
        state=bytes_of(tensors),
        output=trial.output,
        stored=outside.live - trial.output,
        holds_input=inside.live > outside.live,
        forward=outside.peak - outside.live,
        work={name: backward.peak for name, (_, backward) in counted.items()},
        seconds=seconds,
        round_trip=0.0,  # set for each layer in `measure_costs`
        noise=noise,
    )


class _Trial:
    """One layer, run alone under each strategy; the layer and its inputs are copies."""

    def __init__(self, step: Step, state: Any, context: Context) -> None:
        self.chain = Pass([step])
        self.step = step
        self.single = isinstance(state, Tensor)
        self.context = context
        self.state = tuple(
            t.detach().requires_grad_(is_differentiable(t)) for t in as_tensors(state)
        )
        self.device = self.state[0].device
        with torch.no_grad():
            outputs = as_tensors(step(self._input(0), self.context))
        self.output = bytes_of(outputs)
        self.gradients = [torch.ones_like(t) for t in outputs]
        leaves = (*self.state, *tensors_in(context), *step.module.parameters())
        self.leaves = [t for t in leaves if t.requires_grad]

    def count(self, memory: str, copies: int = 0) -> tuple[Memory, Memory]:
        """Count the bytes of a forward pass, and those of a backward pass above them.

        Args:
            memory: The strategy.
            copies: 1 to run on a copy of the state that nothing else refers to, else 0.
        """
        self._backward(self._forward(memory, copies))  # allocates gradients
        return measure_two(
            lambda: self._forward(memory, copies), self._backward, self.device
        )

    def seconds(self, strategies: Sequence[str]) -> tuple[dict[str, float], float]:
        """Time a forward and backward pass under each strategy, in alternation.

        Load only makes a time longer, so the shortest one counts. With `"store"`
        nothing is evaluated twice: its time is at most that of any other strategy.

        Returns:
            The times, and the largest error of a difference of two of them: the two
            largest spreads of the timings, plus a fraction `NOISE` of the time.
        """
        rounds = [
            [self._timed(name) for name in strategies] for _ in range(REPETITIONS)
        ]
        times = dict(zip(strategies, zip(*rounds, strict=True), strict=True))
        shortest = {name: min(repeated) for name, repeated in times.items()}
        spreads = sorted(median(times[name]) - shortest[name] for name in strategies)
        shortest["store"] = min(shortest.values())
        return shortest, sum(spreads[-2:]) + NOISE * shortest["store"]

    def _timed(self, memory: str) -> float:
        start = self._clock()
        self._backward(self._forward(memory, 0))
        return self._clock() - start

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _input(self, copies: int) -> Any:
        state = tuple(t.clone() for t in self.state) if copies else self.state
        return state[0] if self.single else state

    def _forward(self, memory: str, copies: int) -> Tensors:
        recorder = Store() if memory == "store" else Tape(memory, frozenset(), None)
        with torch.enable_grad(), Recording(recorder):
            output = self.chain(self._input(copies), self.context)
        recorder.end()
        return as_tensors(output)

    def _backward(self, outputs: Tensors) -> None:
        pairs = zip(outputs, self.gradients, strict=True)
        ends = [(t, gradient) for t, gradient in pairs if t.requires_grad]
        if ends:
            tensors, gradients = zip(*ends, strict=True)
            torch.autograd.backward(tensors, gradients, inputs=self.leaves)


def _subtractable(tensor: Tensor) -> Tensor:
    """Return integers and booleans in float64, where differences do not wrap around."""
    return tensor if is_differentiable(tensor) else tensor.double()


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def copied(module: nn.Module, *arguments: Any) -> tuple[Any, ...]:
    """Copy a module and its arguments.

    Tensors that have a graph are copied without it, and `requires_grad` is kept. The
    only hooks that are copied are those that compute weights.

    Args:
        module: The module.
        arguments: States and contexts.

    Returns:
        The copies of the module and of each argument.
    """
    memo: dict[int, Any] = {id(t): _detached_copy(t) for t in tensors_in(arguments)}
    memo |= {id(t): _detached_copy(t) for t in _non_leaf_tensors(module)}
    for part in module.modules():
        memo |= {id(hooks): _weight_hooks(hooks) for hooks in _hooks_of(part)}
    try:
        return deepcopy((module, *arguments), memo)
    except Exception as error:
        error.add_note(
            f'memory="auto" could not copy {type(module).__name__} or its context to '
            f"measure it: make them copyable by `copy.deepcopy`, or choose another "
            f"memory for the container"
        )
        raise


def _detached_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _non_leaf_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the non-leaf tensors of a module, which `deepcopy` does not support."""
    for part in module.modules():
        for value in tree_leaves(vars(part)):
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value


def _hooks_of(part: nn.Module) -> list[dict[int, Any]]:
    return [vars(part)[name] for name in HOOKS if name in vars(part)]


def _weight_hooks(hooks: dict[int, Any]) -> dict[int, Any]:
    """Return the hooks that the old weight_norm, spectral_norm and prune install.

    The forward pass reads the weights that they compute. All other hooks are the
    user's and may have side effects, such as a list that grows.
    """
    kept = {
        key: hook
        for key, hook in hooks.items()
        if type(hook).__module__.startswith("torch.nn.utils.")
    }
    return type(hooks)(kept)
