"""One recorded call of a layer, and the ways to evaluate it again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from invtorch.base import REPLAYS, InvertibleModule
from invtorch.engine.contract import (
    check_arity,
    check_closed,
    check_dtypes,
    check_intact,
    check_kinds,
    check_log_det,
    check_parts,
    check_shapes,
    check_unmodified,
    check_unwritten,
)
from invtorch.engine.drift import rounded
from invtorch.engine.environment import Environment, WeightCachesOff
from invtorch.engine.locks import Locks
from invtorch.engine.randomness import Unmoved
from invtorch.engine.replayed import Replayed, Tensors
from invtorch.engine.riding import copied, exchanged, tensors_in
from invtorch.engine.tables import versions
from invtorch.recording import Direction, Recording, State
from invtorch.shifted import Shifted

Method = TypeVar("Method", bound=Callable[..., Any])

INVERSES = {
    "forward": "inverse",
    "inverse": "forward",
    "forward_and_log_det": "inverse",
    "inverse_and_log_det": "forward",
}


def noted(method: Method) -> Method:
    """Note on an error which layer it was."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except Exception as error:
            note_on(error, self.label)
            raise

    return call  # type: ignore[return-value]


def of_the_layer(method: Method) -> Method:
    """Let one thread evaluate a layer, and note on an error which layer it was."""

    @functools.wraps(method)
    def call(self: Frame, *arguments: Any) -> Any:
        with self.locks:
            return method(self, *arguments)

    return cast(Method, noted(call))


def note_on(error: Exception, label: str) -> None:
    """Add which layer it was, unless the error says so."""
    notes = (str(error), *getattr(error, "__notes__", ()))
    if not any(label in text for text in notes):
        error.add_note(f"in {label} of an invertible container")


class Frame:
    """One call of one direction of a layer, as the tape remembers it.

    It holds the layer, the context and the surroundings of the call, but neither the
    state nor the tape.

    Args:
        index: Position on the tape.
        module: The layer.
        direction: What was called, and under which name the class has it.
        state: The input of the call.
        context: The tensors that ride along.
    """

    def __init__(
        self,
        index: int,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: tuple[Any, ...],
    ) -> None:
        self.label = f"layer {index} ({type(module).__name__})"
        self.module = module
        self.direction = direction
        self.single = isinstance(state, Tensor)
        self.form = getattr(type(state), "_make", tuple)  # of a named tuple
        self.context = copied(context)
        self.riding = tensors_in(context)
        self.versions = versions(self.riding)
        first, *others = as_tensors(state)
        self.arity = 1 + len(others)
        parts = parts_of(module)
        self.locks = Locks(parts)
        check_parts(self.label, parts[1:])
        with self.locks:
            self.environment = Environment(parts, first.device)
        parameters = self.environment.parameters
        check_shapes(self.label, [*parameters, *self.environment.buffers])
        needed = {id(t): t for t in (*self.riding, *parameters) if t.requires_grad}
        self.companions: Tensors = tuple(needed.values())

    @of_the_layer
    def run(self, state: Tensors, context: tuple[Any, ...]) -> Tensors:
        """Evaluate the call for the first time, with the context as it was given."""
        before, sight = versions(state), self.environment.look()
        with WeightCachesOff(), Recording(None):
            outputs = self._flat(self.direction(self.module, self._as(state), *context))
        self.environment.keep(sight)
        self._check(state, outputs)
        check_unwritten(
            self.label, self.environment.written(), self.environment.overwritten()
        )
        if versions(state) != before:
            raise RuntimeError(
                f"{self.label} modified its input in place, so it cannot be rebuilt: "
                f"let it return a new tensor, and look for `inplace=True` in the first "
                f"layers of a conditioner"
            )
        return outputs

    @of_the_layer
    def store(self, state: State, context: tuple[Any, ...]) -> Tensors:
        """Evaluate the call and leave it to autograd."""
        with Recording(None):
            outputs = self._flat(self.direction(self.module, state, *context))
        self._check(as_tensors(state), outputs)
        return outputs

    @of_the_layer
    def invert(self, output: Tensors) -> Tensors:
        """Rebuild the input state from the output state, without a graph."""
        self._check_unmodified()
        inverse = getattr(self.module, INVERSES[self.direction.name])
        context, before = copied(self.context), versions(output)
        unmoved = Unmoved(self.environment.device)  # an inverse may draw on its own
        with torch.no_grad(), unmoved, self.environment.restored({}), Recording(None):
            state = as_tensors(inverse(self._as(output), *context))
        check_intact(self.label, versions(output) == before)
        return state

    @of_the_layer
    def rerun(self, state: Tensors) -> Replayed:
        """Evaluate the call again from its input, detached from the graph around it."""
        leaves = tuple(t.detach().requires_grad_(differentiable(t)) for t in state)
        return self._again(
            lambda *context: Replayed(leaves, self._direct(leaves, context)), _leaf
        )

    def replay(self, output: Tensors) -> Replayed:
        """Evaluate the call again from its output, inverting on the way."""
        short_cut = getattr(self.module, REPLAYS[self.direction.name], None)
        if short_cut is None:
            return self.rerun(self.invert(output))

        def evaluate(*context: Any) -> Replayed:
            before = versions(output)
            found = short_cut(self._as(output), *context)
            check_intact(self.label, versions(output) == before)
            if isinstance(found, Shifted):
                return Replayed((found.state,), (), found)
            state, outputs = found
            return Replayed(as_tensors(state), self._flat(outputs))

        return self._again(evaluate, _leaf)

    def reconnect(self, state: Tensors) -> Replayed:
        """Evaluate the call again from its input, attached to the graph around it."""
        aliases = tuple(t.view_as(t) for t in state)
        return self._again(
            lambda *context: Replayed(aliases, self._direct(aliases, context)), _alias
        )

    @of_the_layer
    def _again(
        self,
        evaluate: Callable[..., Replayed],
        stand_in: Callable[[Tensor], Tensor],
    ) -> Replayed:
        self._check_unmodified()
        with torch.enable_grad():
            stand_ins = {id(t): stand_in(t) for t in self.companions}
            context = exchanged(self.context, stand_ins)
            with self.environment.restored(stand_ins), Recording(None):
                found = evaluate(*context)
        replayed = found._replace(inputs=(*found.inputs, *stand_ins.values()))
        own = (*self.riding, *self.environment.parameters)
        fixed = [t for t in own if id(t) not in stand_ins]
        check_closed(self.label, (*replayed.leaves, *fixed), replayed.ends)
        return replayed

    def precisions(self) -> set[torch.dtype]:
        """Return the floating dtypes that it computes in, as far as they are known."""
        parameters = self.environment.parameters
        used = [p.dtype for p in parameters]
        if self.environment.autocast is not None:
            used.append(self.environment.autocast)
        known = {d for d in used if d.is_floating_point or d.is_complex}
        return known | rounded(parameters, self.environment.device)

    def returned(self, outputs: Tensors) -> Any:
        """Give the outputs the form in which the caller expects them."""
        state = self._as(outputs)
        return (state, outputs[-1]) if len(outputs) > self.arity else state

    def _direct(self, state: Tensors, context: tuple[Any, ...]) -> Tensors:
        return self._flat(self.direction(self.module, self._as(state), *context))

    def _as(self, state: Tensors) -> State:
        return state[0] if self.single else self.form(state[: self.arity])

    def _flat(self, output: Any) -> Tensors:
        if not self.direction.name.endswith("log_det"):
            return as_tensors(output)
        state, log_det = output
        check_log_det(self.label, log_det)
        return (*as_tensors(state), log_det)

    def _check(self, state: Tensors, outputs: Tensors) -> None:
        log_dets = self.direction.name.endswith("log_det")
        check_arity(self.label, self.arity, len(outputs) - log_dets)
        check_dtypes(self.label, state, outputs)

    def _check_unmodified(self) -> None:
        check_kinds(self.label, self.environment.has_same_kinds())
        changed = versions(self.riding) != self.versions
        name = "the context" if changed else self.environment.modified()
        check_unmodified(self.label, name)


def parts_of(module: nn.Module) -> list[nn.Module]:
    """Return a module and all inside of it, each once, faster than `modules()`."""
    found: dict[int, nn.Module] = {id(module): module}
    todo = [module]
    while todo:
        for part in todo.pop()._modules.values():
            if part is not None and id(part) not in found:
                found[id(part)] = part
                todo.append(part)
    return [*found.values()]


def as_tensors(state: Any) -> Tensors:
    """Return a state as a tuple of tensors."""
    if isinstance(state, Tensor):
        return (state,)
    if isinstance(state, tuple) and state and all(isinstance(t, Tensor) for t in state):
        return state
    hint = ": is a `return` missing?" if state is None else ""
    raise TypeError(
        f"a state is a tensor or a tuple of tensors, not {type(state).__name__}{hint}"
    )


def differentiable(tensor: Tensor) -> bool:
    """Tell whether a tensor can need a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def _leaf(tensor: Tensor) -> Tensor:
    """Return a leaf to differentiate for, whose hooks wait for the node's gradient."""
    if tensor.is_leaf and tensor.requires_grad and not tensor._backward_hooks:
        return tensor
    return tensor.detach().requires_grad_()


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)
