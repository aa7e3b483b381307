"""The errors that layers can cause, with their messages, for both engines.

The rule is "right or raises". If a replay would differ from the forward pass, a check
raises an error that names the layer, the cause and the remedy. What only a comparison
of states can show is left to the guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

from invtorch import _torch
from invtorch.precision import as_kind

HALF = (torch.float16, torch.bfloat16)


# --- states ---------------------------------------------------------------------------


def as_tensors(state: Any) -> tuple[Tensor, ...]:
    """Return a state as a tuple of tensors.

    Raises:
        TypeError: If it is neither a tensor nor a tuple of tensors.
    """
    if isinstance(state, Tensor):
        return (state,)
    if isinstance(state, tuple) and state and all(isinstance(t, Tensor) for t in state):
        return state
    hint = ": is a `return` missing?" if state is None else ""
    found = type(state).__name__
    if isinstance(state, tuple):
        found = f"{found} of {', '.join(type(t).__name__ for t in state) or 'nothing'}"
    raise TypeError(f"a state is a tensor or a tuple of tensors, not {found}{hint}")


def converted(state: Any, dtype: torch.dtype) -> Any:
    """Convert a state to another dtype; integers keep theirs."""
    tensors = tuple(t.to(as_kind(dtype, t)) for t in as_tensors(state))
    return tensors[0] if isinstance(state, Tensor) else tensors


def check_inverse_arity(label: str, expected: int, returned: int) -> None:
    """Refuse an inverse that returns another number of tensors than the layer receives.

    Raises:
        RuntimeError: If it does.
    """
    if returned != expected:
        raise RuntimeError(
            f"the inverse of {label} returned {returned} tensors, but the layer "
            f"received {expected}: return the state that it received"
        )


def check_inverse_kinds(
    label: str,
    received: Sequence[tuple[torch.Size, torch.dtype]],
    returned: Sequence[Tensor],
) -> None:
    """Refuse an inverse that returns other shapes or dtypes than the layer receives.

    Args:
        label: The name of the layer in messages.
        received: Shape and dtype of each tensor that the layer received.
        returned: What the inverse returned.

    Raises:
        RuntimeError: If they differ.
    """
    for (shape, dtype), tensor in zip(received, returned, strict=True):
        if tensor.shape != shape:
            raise RuntimeError(
                f"the inverse of {label} returned shape {tuple(tensor.shape)}, but the "
                f"layer received {tuple(shape)}: return the state that it received"
            )
        if tensor.dtype != dtype:
            raise RuntimeError(
                f"the inverse of {label} returned {tensor.dtype}, but the layer "
                f"received {dtype}: return `x.to(y.dtype)`"
            )


def check_dtypes(label: str, state: Sequence[Tensor], output: Sequence[Tensor]) -> None:
    """Refuse a layer that changes the dtype of the state.

    Raises:
        RuntimeError: If it does, or if it returns another number of tensors, one of
            them in a dtype that none of the state has.
    """
    before, after = [t.dtype for t in state], [t.dtype for t in output]
    if len(before) != len(after):  # no tensor of one is a tensor of the other
        before = [d if d in before else before[0] for d in after]
    for old, new in zip(before, after, strict=True):
        if old != new:
            raise RuntimeError(
                f"{label} changed the dtype of the state from {old} to {new}, which "
                f"its inverse cannot undo: return `y.to(x.dtype)`"
            )


def check_log_det(label: str, log_det: object) -> None:
    """Refuse a log-determinant that is not a tensor.

    Raises:
        TypeError: If it is not a tensor.
    """
    if not isinstance(log_det, Tensor):
        raise TypeError(
            f"{label} returned a log-determinant that is a {type(log_det).__name__}: "
            f"return a tensor of shape (batch,)"
        )


def check_half_precision(state: Sequence[Tensor], kept: bool) -> None:
    """Refuse a state in half precision that is rebuilt without a guard.

    Args:
        state: The state.
        kept: Whether every state is kept.

    Raises:
        RuntimeError: If it is in half precision and not kept.
    """
    half = [t.dtype for t in state if t.dtype in HALF]
    if half and not kept:
        raise RuntimeError(
            f"a state in {half[0]} cannot be rebuilt by inversion without a guard: set "
            f'guard="raise", state_dtype=torch.float32, or memory="checkpoint"'
        )


# --- modules --------------------------------------------------------------------------


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks of any kind.

    A hook may run any code. The eager engine calls hooks again in a replay, as
    checkpointing does. Closed forms and compiled passes cannot call them.
    """
    return _torch.has_hooks(module)


def check_parts(label: str, parts: Iterable[nn.Module]) -> None:
    """Refuse a layer if a replay cannot replace the parameters of a module inside.

    Args:
        label: The name of the layer in messages.
        parts: The modules inside it.

    Raises:
        RuntimeError: If `fully_shard` or `torch.jit` was applied to one of them.
    """
    for part in parts:
        if _torch.is_fully_sharded(part):
            raise RuntimeError(
                f"`fully_shard` was applied to {type(part).__name__} inside {label}: "
                f"apply it to the layer or the container instead"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise RuntimeError(
                f"{label} contains a module that `torch.jit` compiled, which cannot be "
                f"replayed: use `torch.compile`, or set memory='store'"
            )


def unshard(label: str, module: Any, parameters: Sequence[Tensor]) -> bool:
    """Gather the parameters of a layer again, if FSDP2 freed them after forward.

    FSDP2 gathers them before the gradient of an output arrives. A layer above a loss
    on an inner output gets no gradient, but is inverted.

    Args:
        label: The name of the layer in messages.
        module: The layer.
        parameters: The parameters that it read in the forward pass.

    Returns:
        Whether they were gathered, and are to be freed with `module.reshard()`.

    Raises:
        RuntimeError: If only a module around the layer can gather them.
    """
    distributed = (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    )
    if not distributed or not any(map(_is_freed, parameters[:1])):
        return False  # parameters are freed together
    if not _torch.is_fully_sharded(module):
        raise RuntimeError(
            f"the parameters of {label} are sharded, because no loss depends on the "
            f"output of its container: add one, or apply `fully_shard` to each layer"
        )
    module.unshard()
    return True


def _is_freed(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def check_kinds(label: str, same: bool) -> None:
    """Refuse a replay of modules whose class or `__dict__` was replaced.

    Raises:
        RuntimeError: If they were.
    """
    if not same:
        raise RuntimeError(
            f"the class or `__dict__` of a module of {label} was replaced between "
            f"forward and backward: replace it after backward"
        )


def check_shapes(label: str, tensors: Iterable[Tensor]) -> None:
    """Refuse a layer whose parameters or buffers have no shape yet.

    Raises:
        RuntimeError: If one of them is uninitialized.
    """
    if any(map(is_lazy, tensors)):
        raise RuntimeError(
            f"{label} contains a lazy module without shapes: call the container once "
            f"under `torch.no_grad()` first"
        )


# --- changes in place -----------------------------------------------------------------


def check_input_unmodified(label: str, unmodified: bool) -> None:
    """Refuse a layer that modifies its input in place.

    Raises:
        RuntimeError: If it does.
    """
    if not unmodified:
        raise RuntimeError(
            f"{label} modified its input in place: return a new tensor (look for "
            f"`inplace=True` in its first modules)"
        )


def check_output_unmodified(label: str, unmodified: bool) -> None:
    """Refuse an inverse that modifies its argument in place.

    Raises:
        RuntimeError: If it does.
    """
    if not unmodified:
        raise RuntimeError(
            f"{label} modified in place the output passed to its inverse: return a new "
            f"tensor from the inverse"
        )


def check_own_tensors(label: str, parameter: str | None, attribute: str | None) -> None:
    """Refuse a layer that modifies its own tensors in place.

    Args:
        label: The name of the layer in messages.
        parameter: The name of a parameter that its forward pass modified in place.
        attribute: The name of a tensor attribute, not a buffer, that it modified.

    Raises:
        RuntimeError: If there is one.
    """
    if parameter is not None:
        raise RuntimeError(
            f"{label} modified its parameter {parameter} in the forward pass: set "
            f"`layer.memory = 'store'`, or if that initializes it, call the container "
            f"under `torch.no_grad()` first"
        )
    if attribute is not None:
        raise RuntimeError(
            f"{label} modified its attribute {attribute} in place in the forward pass: "
            f"register it as a buffer"
        )


def check_unmodified(label: str, name: str | None) -> None:
    """Refuse a replay if a tensor was modified since the forward pass.

    Args:
        label: The name of the layer in messages.
        name: The name of a tensor that it reads and that was modified in place.

    Raises:
        RuntimeError: If there is one.
    """
    if name is not None:
        raise RuntimeError(
            f"{name} of {label} was modified in place between forward and backward: "
            f"step the optimizer after backward, or change a copy"
        )


def check_copied(label: str, buffer: str | None) -> None:
    """Refuse a replay of a layer that wrote a large buffer for the first time.

    Args:
        label: The name of the layer in messages.
        buffer: The name of a buffer that the forward pass has written, of which no copy
            was kept, because no call before has written it.

    Raises:
        RuntimeError: If there is one.
    """
    if buffer is not None:
        raise RuntimeError(
            f"{label} wrote its buffer {buffer}, which it only read before, and no "
            f"copy was kept: repeat the forward pass"
        )


def check_state_unmodified(label: str, unmodified: bool) -> None:
    """Refuse to rebuild states from one that was modified in place.

    Args:
        label: The name of the state in messages: the input, or the output of a layer.
        unmodified: Whether it is unchanged.

    Raises:
        RuntimeError: If it was modified.
    """
    if not unmodified:
        raise RuntimeError(
            f"the {label} was modified in place after the forward pass: write "
            f"`y = y + 1` instead of `y += 1`"
        )


def check_unbroken(label: str, above: str, same: bool) -> None:
    """Refuse a state that was changed between two layers.

    Args:
        label: The name of the layer that receives it.
        above: The name of the layer that returned it.
        same: Whether it is the same memory, unchanged.

    Raises:
        RuntimeError: If it is not.
    """
    if not same:
        raise RuntimeError(
            f"the input of {label} is not the output of {above}: a hook, an in-place "
            f"operation or a replaced method changed it; use an invertible module"
        )


def check_same_branch(label: str, same: bool) -> None:
    """Refuse a replay that took another branch than the forward pass.

    Its gradients may be wrong even if its values are not, for instance where the last
    layer of each branch is initialized with zeros.

    Raises:
        RuntimeError: If it did.
    """
    if not same:
        raise RuntimeError(
            f"{label} was evaluated by other operations in its replay than before: "
            f"draw by a generator on the module, warm up functions of "
            f"`torch.jit.script`, or set memory='store'"
        )


def check_same_inputs(
    label: str,
    reached: Sequence[bool | None],
    again: Sequence[bool | None],
    method: str | None,
) -> None:
    """Refuse a replay that depends on other parameters than the forward pass.

    Args:
        label: The name of the layer in messages.
        reached: On which ones the forward pass depends; `None` if it is not known.
        again: On which ones the replay depends.
        method: The method of the layer that evaluated it, if it has one for that.

    Raises:
        RuntimeError: If it does not.
    """
    pairs = zip(reached, again, strict=True)
    if all(before is None or before == now for before, now in pairs):
        return
    way = "set memory='store'" if method is None else f"correct its `{method}`"
    raise RuntimeError(
        f"{label} depended on other parameters or context in its replay than in the "
        f"forward pass: draw by a generator on the module, or {way}"
    )


# --- gradients ------------------------------------------------------------------------


def check_transforms(label: str) -> None:
    """Refuse a backward pass inside a transform of `torch.func`.

    Raises:
        RuntimeError: If one is active.
    """
    if _torch.is_functorch_active():
        raise RuntimeError(
            f"{label} cannot be replayed inside `torch.vmap` or another transform: "
            f"use `torch.autograd.grad(..., is_grads_batched=True)`"
        )


def check_closed(
    label: str,
    known: Sequence[Tensor],
    ends: Iterable[Node],
    context: tuple[Any, ...] = (),
) -> None:
    """Refuse a layer whose output depends on a tensor that would get no gradient.

    Args:
        label: The name of the layer in messages.
        known: The tensors that get a gradient.
        ends: The last nodes of the graph of the outputs.
        context: The context of the call, in which objects may hold such a tensor.

    Raises:
        RuntimeError: If the graph has a leaf that is not in `known`.
    """
    foreign = foreign_leaf(ends, known)
    if foreign is None:
        return
    shape = f" of shape {tuple(foreign.shape)}"
    for part in _torch.tree_leaves(context):
        if not isinstance(part, Tensor) and _holds_a_gradient(part):
            raise RuntimeError(
                f"{label} reads a tensor{shape} that needs a gradient from a context "
                f"of type {type(part).__name__}: pass a tensor, list, dictionary or "
                f"dataclass"
            )
    raise RuntimeError(_not_an_input(label, shape))


def _holds_a_gradient(part: object) -> bool:
    held = getattr(part, "__dict__", {}).values()
    return any(isinstance(t, Tensor) and t.requires_grad for t in held)


def check_no_gradient(label: str, outputs: Sequence[Tensor]) -> None:
    """Refuse the same where no input needs a gradient, as in a compiled pass.

    Raises:
        RuntimeError: If an output needs a gradient.
    """
    if any(t.requires_grad for t in outputs):
        raise RuntimeError(_not_an_input(label, ""))


def _not_an_input(label: str, shape: str) -> str:
    return (
        f"{label} reads a tensor{shape} that needs a gradient but is neither a "
        f"parameter nor context: register it, read it there (not through another "
        f"reference), or pass it as context"
    )


def foreign_leaf(ends: Iterable[Node], known: Sequence[Tensor]) -> Tensor | None:
    """Return a leaf on which nodes depend other than through `known`, if any."""
    leaves = {id(t) for t in known if t.grad_fn is None}
    for node in _nodes(ends, {t.grad_fn for t in known}):
        leaf = _leaf_of(node)
        if leaf is not None and id(leaf) not in leaves:
            return leaf
    return None


def reached(
    tensors: Sequence[Tensor], known: Sequence[Tensor], ends: Iterable[Node]
) -> tuple[Tensor, ...]:
    """Return the tensors on which nodes depend other than through `known`."""
    nodes = {t.grad_fn for t in tensors} | {t.grad_fn for t in known}
    found: set[object] = set()
    for node in _nodes(ends, nodes - {None}, found):
        found.add(id(_leaf_of(node)))
    return tuple(t for t in tensors if (t.grad_fn or id(t)) in found)


def inputs_reached(
    inputs: Sequence[Tensor], state: Sequence[Tensor], ends: Iterable[Node]
) -> list[bool | None]:
    """Return on which inputs nodes depend; `None` where one is a part of the state."""
    own = {*map(_place_of, state)}
    places = [*map(_place_of, inputs)]
    stops = {node for node, _ in own.union(places) if isinstance(node, Node)}
    found: set[tuple[object, int]] = {(end, 0) for end in ends if end in stops}
    for node in _nodes(ends, {*stops}):
        found.add((id(_leaf_of(node)), 0))
        found.update(edge for edge in node.next_functions if edge[0] in stops)
    return [None if place in own else place in found for place in places]


def _place_of(tensor: Tensor) -> tuple[object, int]:
    """Return where a tensor is in a graph: the output of a node, or a leaf."""
    node = tensor.grad_fn
    return (id(tensor), 0) if node is None else (node, tensor.output_nr)


def _nodes(
    ends: Iterable[Node], stops: set[Node | None], met: set[object] | None = None
) -> Iterator[Node]:
    """Yield the nodes of a graph down to `stops`, which are added to `met` instead."""
    seen: set[Node] = set()
    pending = [*ends]
    while pending:
        node = pending.pop()
        if node in stops:
            if met is not None:
                met.add(node)
        elif node not in seen:
            seen.add(node)
            yield node
            pending += [parent for parent, _ in node.next_functions if parent]


def _leaf_of(node: Node) -> Tensor | None:
    """Return the leaf of a node that accumulates its gradient, which has no parents."""
    return None if node.next_functions else getattr(node, "variable", None)
