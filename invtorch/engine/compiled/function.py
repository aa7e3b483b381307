"""A pass as one autograd function of the tensors that it reads.

Dynamo cannot trace a tape, whose nodes look up their states in Python objects. Here the
pass is one function of tensors. It saves its output, the anchors and the mark of every
state. Its backward pass inverts and differentiates step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invtorch import _torch
from invtorch.composite import Step, elementary
from invtorch.engine.checks import (
    check_dtypes,
    check_inverse_arity,
    check_no_gradient,
)
from invtorch.engine.compiled.checks import (
    assert_finite,
    assert_rebuilt,
    assert_repeated,
    assert_repeated_from,
    assert_unchanged,
    check_arguments,
    check_composites,
    check_deterministic,
    check_global_hooks,
    check_no_checkpoint,
    check_repeatable,
    check_sizes,
    computed_eps,
    mark,
    state_least_share,
    state_tolerance,
)
from invtorch.engine.first_layers import (
    MOST,
    has_samples,
    mixes,
    with_entries_of,
)
from invtorch.engine.guard.blocks import blocks_of
from invtorch.engine.guard.tolerance import (
    floors_of,
    for_each_block,
    growth_of,
    sizes_of_samples,
    whole_norms,
)
from invtorch.engine.restore.environment import is_known
from invtorch.recording import Context, State
from invtorch.replay import Tensors


def run(
    anchors: frozenset[int],
    guarded: bool,
    steps: Sequence[Step],
    state: State,
    context: Context,
) -> State:
    """Run the steps as one function that saves its output and the anchors.

    Args:
        anchors: The indices of the states that are kept.
        guarded: Whether rebuilt states are compared with those of the forward pass.
        steps: The steps; those of composites among them are run one by one.
        state: The input of the pass, one tensor or a tuple of several.
        context: Further arguments of the modules.

    Returns:
        The final state.

    Raises:
        RuntimeError: If a step, a state or a context is not supported under
            `torch.compile`.
    """
    check_global_hooks()
    check_arguments(_as_tuple(state), context)
    check_composites(steps)
    table, calls, single = TensorTable(), [], isinstance(state, Tensor)
    start = tuple(table.place(t) for t in _as_tuple(state))
    for i, step in enumerate(elementary(steps)):
        label = f"layer {i} ({type(step.module).__name__})"
        check_repeatable(label, step.module)
        part, tensors = step.part_of(context), _tensors_of(step.module)
        read = (*part.args, *part.named.values(), *tensors.values())
        places = tuple(table.place(t) for t in read)
        needed = tuple(table.tensors[i].requires_grad for i in places)
        names = tuple(part.named), tuple(tensors)
        kept = i == 0 or i in anchors
        only_mixes = is_known(type(step.module)) and mixes(step.module)
        calls.append(TracedCall(label, step, *names, places, needed, kept, only_mixes))
    check_sizes()
    output: State = CompiledPass.apply(calls, guarded, single, start, *table.tensors)
    return output


class CompiledPass(torch.autograd.Function):
    """All steps of a pass. It saves output, anchors, marks and the tensors it reads.

    Without a guard only the mark of the output is saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        calls: list[TracedCall],
        guarded: bool,
        single: bool,
        start: tuple[int, ...],
        *tensors: Any,
    ) -> State:
        """Run the steps."""
        ctx.calls, ctx.guarded, ctx.start = calls, guarded, start
        state: Tensors = tuple(tensors[i] for i in start)
        ctx.entries = single and has_samples(state[0])
        # the first layer that does more than mix
        ctx.first = next((i for i, c in enumerate(calls) if not c.mixes), 0)
        anchors: Tensors = ()
        marks = [mark(list(state))] if guarded else []
        ctx.counts, ctx.single = [_counts(state)], [single]
        for i, call in enumerate(calls):
            if call.anchor:  # a clone: Dynamo cannot save a view of another tensor
                anchors += state if i == 0 else tuple(t.clone() for t in state)
            read = [_detached(c) for c in call.read(tensors)]
            given = tuple(map(_detached, state))
            before = _torch.traced_operations()
            with torch.enable_grad():
                output = call.evaluate(_in_form(given, ctx.single[-1]), read)
            state = _as_tuple(output)
            ctx.single.append(isinstance(output, Tensor))
            check_deterministic(call.label, _torch.random_operation(before))
            check_no_checkpoint(call.label, _torch.checkpoint_traced(before))
            check_dtypes(call.label, given, state)
            check_no_gradient(call.label, state)
            marks += [mark(list(state))] if guarded else []
            ctx.counts.append(_counts(state))
        marks = marks or [mark(list(state))]
        ctx.rows = [len(rows) for rows in marks]
        ctx.save_for_backward(*state, *anchors, torch.cat(marks), *tensors)
        return _in_form(state, ctx.single[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Invert and differentiate the steps, the last one first."""
        arities = [len(counts) for counts in ctx.counts]
        kept = [n for n, call in zip(arities, ctx.calls, strict=False) if call.anchor]
        last, end = arities[-1], arities[-1] + sum(kept)
        state = _after(grads, ctx.saved_tensors[:last])
        anchors, tensors = ctx.saved_tensors[last:end], ctx.saved_tensors[end:]
        (table,), tensors = _after(grads, tensors[:1]), tensors[1:]
        marks = table.split(ctx.rows)
        assert_unchanged(mark(list(state)), marks[-1])
        guard = Marks.of(marks, ctx.counts) if ctx.guarded else None
        _assert_finite(ctx.calls, guard)
        sums: list[Any] = [None] * len(tensors)
        eps = 0.0  # the coarsest eps since the last anchor
        for i, call in reversed(list(enumerate(ctx.calls))):
            read, output, arity = call.read(tensors), state, arities[i]
            before, after = ctx.single[i : i + 2]
            if call.anchor:
                state, anchors = _after(grads, anchors[-arity:]), anchors[:-arity]
            elif i == ctx.first:
                state = _evaluated_again(ctx, i, grads, tensors)
            else:
                with torch.no_grad():
                    inverted = call.back.evaluate(_in_form(output, after), read)
                state = _as_tuple(inverted)
                check_inverse_arity(call.label, arity, len(state))
                state = _with_entries_of_the_input(ctx, i, grads, tensors, state)

            def forward(
                *inputs: Tensor,
                call: TracedCall = call,
                fixed: list[Any] = read,
                arity: int = arity,
                single: bool = before,
            ) -> Tensors:
                given = _in_form(inputs[:arity], single)
                replaced = call.replaced(fixed, inputs[arity:])
                return _as_tuple(call.again.evaluate(given, replaced))

            eps = max(eps, computed_eps(call.step.module, output))
            needed = call.choose(read)
            again, pull = torch.func.vjp(forward, *state, *needed)  # type: ignore[misc]
            _assert_replay(i, call, guard, state, output, again, eps)
            if call.anchor:  # the states below are rebuilt from an exact one
                eps = 0.0
            pulled = pull(grads)
            grads = pulled[:arity]
            _add(sums, call.choose(call.places), pulled[arity:])
        _add(sums, ctx.start, grads)
        return None, None, None, None, *sums


def _evaluated_again(
    ctx: Any, index: int, grads: Sequence[Any], tensors: Sequence[Any]
) -> Tensors:
    """Return the state after the first layers, which only mix, from the input.

    It is as small as the input. Beside states of ordinary size, inversion would lose
    its digits.
    """
    state = _after(grads, tuple(tensors[i] for i in ctx.start))
    with torch.no_grad():
        for call, single in zip(ctx.calls[:index], ctx.single, strict=False):
            output = call.again.evaluate(_in_form(state, single), call.read(tensors))
            state = _as_tuple(output)
    return state


def _with_entries_of_the_input(
    ctx: Any, index: int, grads: Sequence[Any], tensors: Sequence[Any], state: Tensors
) -> Tensors:
    """Return a rebuilt state with the entries that no layer has changed.

    Which ones there are is not counted: a graph cannot depend on it. So they are looked
    for in the first few states.
    """
    if index > MOST or not ctx.entries:
        return state
    (start,) = _after(grads, tuple(tensors[i] for i in ctx.start))
    calls = ctx.calls[:index]
    moves = [partial(call.move, read=call.read(tensors)) for call in calls]
    return tuple(with_entries_of(start, moves, t) for t in state)


def _add(sums: list[Any], places: Sequence[int], values: Sequence[Any]) -> None:
    """Add gradients to the sums of their tensors."""
    for i, value in zip(places, values, strict=True):
        sums[i] = value if sums[i] is None else sums[i] + value


def _counts(state: Tensors) -> list[int]:
    return [blocks_of(t).number for t in state]


class Marks(NamedTuple):
    """The marks of all states of a pass.

    Attributes:
        rows: The mark of each state.
        counts: The number of blocks of each tensor of each state.
        sizes: The norms of these tensors, shape `(states, tensors)`, zero where a state
            has fewer tensors than another.
        floors: The sizes by which blocks of zeros are judged, in the same shape.
    """

    rows: Tensors
    counts: list[list[int]]
    sizes: Tensor
    floors: Tensor

    @classmethod
    def of(cls, rows: Tensors, counts: list[list[int]]) -> Marks:
        """Return the marks with the sizes that follow from them."""
        pairs = zip(rows, counts, strict=True)
        norms = [whole_norms(r[:, -1], count) for r, count in pairs]
        most = max(map(len, counts))
        sizes = torch.stack([F.pad(one, (0, most - len(one))) for one in norms])
        ragged = any(len(count) < most for count in counts)
        return cls(rows, counts, sizes, floors_of(sizes, ragged))

    def scales(self, index: int) -> Tensor:
        """Return the size relative to which an error of each block is measured."""
        norms = self.rows[index][:, -1].double()
        counts = self.counts[index]
        floors = for_each_block(self.floors[index][: len(counts)], counts)
        return torch.where(norms > 0, norms, floors)

    def least(self, index: int) -> Tensor:
        """Return for each tensor of zeros the size that it is judged by, else zero."""
        least = torch.where(self.sizes[index] > 0, 0.0, self.floors[index])
        return least[: len(self.counts[index])]


def _assert_finite(calls: Sequence[TracedCall], guard: Marks | None) -> None:
    """Assert in the graph that the states were finite, if they were marked."""
    if guard is not None:
        for call, sizes in zip(calls, guard.sizes[1:].unbind(), strict=True):
            assert_finite(call.label, sizes)


def _assert_replay(
    index: int,
    call: TracedCall,
    guard: Marks | None,
    state: Tensors,
    output: Tensors,
    again: Tensors,
    eps: float,
) -> None:
    """Assert in the graph that a replay agrees with the forward pass.

    Its output must be that of the layer. With a guard, the error of the rebuilt state
    must be within the tolerance of the layers through which it was rebuilt.
    """
    limit = state_tolerance(output, computed_eps(call.step.module, output))
    if call.anchor:
        if guard is not None:
            again_mark, scales = mark(list(again)), guard.scales(index + 1)
            rows = guard.rows[index + 1]
            assert_repeated_from(call.label, again_mark, rows, scales, limit)
        return
    none = output[0].new_zeros(len(output), dtype=torch.float32)
    least = none if guard is None else guard.least(index + 1)
    assert_repeated(call.label, again, output, least.unbind(), limit)
    if guard is not None:
        now, steep = mark(list(state)), growth_of(guard.sizes) * eps > 1
        limits = (
            state_tolerance(output, eps),
            state_tolerance(output, eps, steep=True),
        )
        shares = (
            state_least_share(output, eps),
            state_least_share(output, eps, steep=True),
        )
        share = torch.where(steep, shares[1], shares[0])
        norms = guard.rows[index][:, -1].double()
        whole = sizes_of_samples(norms, [blocks_of(t) for t in state])
        scales = torch.maximum(guard.scales(index), share * whole)
        assert_rebuilt(call.label, now, guard.rows[index], scales, limits, steep)


class TracedCall(NamedTuple):
    """One step, and the indices of its tensors among those of the pass.

    Attributes:
        label: The name of the layer in error messages.
        step: The step.
        keywords: The names of its keyword context.
        names: The names of its parameters and buffers.
        places: The indices of its context, positional first, followed by those of
            `names`.
        needed: Which of these tensors need a gradient.
        anchor: Whether its input is kept.
        mixes: Whether the layer has no network inside.
        buffers: The names of tensors that are copied, because a replay may change them.
    """

    label: str
    step: Step
    keywords: tuple[str, ...]
    names: tuple[str, ...]
    places: tuple[int, ...]
    needed: tuple[bool, ...]
    anchor: bool
    mixes: bool
    buffers: frozenset[str] = frozenset()

    def read(self, tensors: Sequence[Any]) -> list[Any]:
        """Return context, parameters and buffers from the tensors of the pass."""
        return [tensors[i] for i in self.places]

    def choose(self, values: Sequence[Any]) -> list[Any]:
        """Return the values, one for each tensor that is read, that need a gradient."""
        return [v for v, need in zip(values, self.needed, strict=True) if need]

    def replaced(self, values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """Return the values, with those that need a gradient replaced by `others`."""
        rest = iter(others)
        pairs = zip(values, self.needed, strict=True)
        return [next(rest) if need else v for v, need in pairs]

    def evaluate(self, state: State, read: Sequence[Any]) -> State:
        """Run the step with these tensors as context, parameters and buffers."""
        named = len(self.places) - len(self.names)
        args = named - len(self.keywords)
        context = Context(
            tuple(read[:args]), dict(zip(self.keywords, read[args:named], strict=True))
        )
        values = dict(zip(self.names, read[named:], strict=True))
        values |= {name: values[name].clone() for name in self.buffers}
        with _torch.exchange_tensors(self.step.module, values):
            output: State = context.call(self.step.function, state)
        return output

    def move(self, entries: Tensor, read: Sequence[Any]) -> Tensor | None:
        """Return entries as the step moves them, with zeros where it changes them."""
        module, direction, _ = self.step
        unchanged = module.unchanged
        if unchanged is None or not is_known(type(module)):
            return None
        named = len(self.places) - len(self.names)
        values = dict(zip(self.names, read[named:], strict=True))
        with torch.no_grad(), _torch.exchange_tensors(module, values):
            after = unchanged(entries, direction)
        return after if isinstance(after, Tensor) else None

    @property
    def again(self) -> TracedCall:
        """The step for a replay, on copies of the buffers."""
        named = self.step.module.named_buffers(remove_duplicate=False)
        return self._replace(buffers=frozenset(name for name, _ in named))

    @property
    def back(self) -> TracedCall:
        """The inverse of the step, on copies of the buffers."""
        return self.again._replace(step=self.step.inverse)


class TensorTable:
    """The tensors of a pass, each once: Dynamo does not accept a tensor twice."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []

    def place(self, tensor: Any) -> int:
        """Return the index of a tensor, and append it if it is new."""
        for i, known in enumerate(self.tensors):
            if known is tensor:
                return i
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module, under each of their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _after(grads: Sequence[Tensor], state: Tensors) -> Tensors:
    """Return the same values, as tensors that depend on the gradient.

    The partitioner of `torch.compile` may move operations that do not depend on the
    gradient to the forward pass, and save their results. That would save activations.
    """
    first = grads[0].flatten()[:1].isnan().any()
    return tuple(torch.where(first, t, t) for t in state)


def _detached(value: Any) -> Any:
    """Return a tensor without its graph, and anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def _in_form(state: Tensors, single: bool) -> State:
    return state[0] if single else state


def _as_tuple(state: Any) -> Tensors:
    return (state,) if isinstance(state, Tensor) else state
