"""What layers are refused for, and in which words: one list for both engines.

The rule is "right or raises". What would make a replay differ from the forward pass is
refused here, with the layer, what happened, and what to write instead. What only a
comparison of states can show is the guard's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

from invtorch import _torch

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
    raise TypeError(
        f"a state is a tensor or a tuple of tensors, not {type(state).__name__}{hint}"
    )


def check_arity(label: str, expected: int, returned: int) -> None:
    """Refuse a state that comes out as another number of tensors.

    Raises:
        RuntimeError: If it does.
    """
    if returned != expected:
        raise RuntimeError(
            f"{label} returned {returned} tensors for a state of {expected}: return as "
            f"many tensors as the layer is given"
        )


def check_dtypes(label: str, state: Iterable[Tensor], output: Iterable[Tensor]) -> None:
    """Refuse a state that comes out in another dtype.

    Raises:
        RuntimeError: If it does.
    """
    for before, after in zip(state, output, strict=False):
        if before.dtype != after.dtype:
            raise RuntimeError(
                f"{label} changed the dtype of the state from {before.dtype} to "
                f"{after.dtype}, which its inverse cannot undo: return `y.to(x.dtype)`"
            )


def check_log_det(label: str, log_det: object) -> None:
    """Refuse a log-determinant that is a plain number.

    Raises:
        TypeError: If it is no tensor.
    """
    if not isinstance(log_det, Tensor):
        raise TypeError(
            f"{label} returned a log-determinant that is a {type(log_det).__name__}: "
            f"return a tensor of shape (batch,)"
        )


def check_half_precision(state: Sequence[Tensor], kept: bool) -> None:
    """Refuse a state in half precision that is rebuilt and not compared.

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
    """Tell whether a module has hooks of any kind.

    A hook may do anything. The eager engine calls hooks again in a replay, as
    checkpointing does; a hand-written derivative and a compiled pass cannot.
    """
    return _torch.has_hooks(module)


def check_parts(label: str, parts: Iterable[nn.Module]) -> None:
    """Refuse a layer with a module inside whose parameters a replay cannot exchange.

    Args:
        label: What to call the layer.
        parts: The modules inside of it.

    Raises:
        RuntimeError: If `fully_shard` or `torch.jit` was applied to one of them.
    """
    for part in parts:
        if _torch.is_fully_sharded(part):
            raise RuntimeError(
                f"`fully_shard` was applied to {type(part).__name__} in {label}, which "
                f"a replay gathers too late: shard the layer or the container"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise RuntimeError(
                f"{label} contains a module that `torch.jit` compiled, which cannot be "
                f"replayed: use `torch.compile` on it, or memory='store'"
            )


def check_kinds(label: str, same: bool) -> None:
    """Refuse a replay of modules whose class or dictionary was exchanged.

    Raises:
        RuntimeError: If they were.
    """
    if not same:
        raise RuntimeError(
            f"the class or `__dict__` of a module of {label} was exchanged between "
            f"forward and backward: exchange it after backward"
        )


def check_shapes(label: str, tensors: Iterable[Tensor]) -> None:
    """Refuse a layer whose parameters or buffers have no shape yet.

    Raises:
        RuntimeError: If one has none.
    """
    if any(map(is_lazy, tensors)):
        raise RuntimeError(
            f"{label} has tensors without a shape, those of a lazy module: call the "
            f"container once under `torch.no_grad()` first"
        )


# --- changes in place -----------------------------------------------------------------


def check_input_unmodified(label: str, unmodified: bool) -> None:
    """Refuse a layer that works in place on its input.

    Raises:
        RuntimeError: If it does.
    """
    if not unmodified:
        raise RuntimeError(
            f"{label} modified its input in place, so it cannot be rebuilt: return a "
            f"new tensor (look for `inplace=True` in its first modules)"
        )


def check_output_unmodified(label: str, unmodified: bool) -> None:
    """Refuse an inverse that works in place.

    Raises:
        RuntimeError: If the output that it was given is not what it was.
    """
    if not unmodified:
        raise RuntimeError(
            f"{label} modified in place the output that its inverse was given, which "
            f"the caller may use: let the inverse return a new tensor"
        )


def check_own_tensors(label: str, parameter: str | None, attribute: str | None) -> None:
    """Refuse a layer that changes in place what it reads.

    Args:
        label: What to call the layer.
        parameter: The name of a parameter that its forward pass changed in place.
        attribute: The name of another tensor of it, not a buffer, that it changed so.

    Raises:
        RuntimeError: If there is one.
    """
    if parameter is not None:
        raise RuntimeError(
            f"{label} changed its parameter {parameter} in its own forward pass: if "
            f"that initializes it, call the container under `torch.no_grad()` first"
        )
    if attribute is not None:
        raise RuntimeError(
            f"{label} changed its attribute {attribute} in place in its own forward "
            f"pass, which a replay repeats: register it as a buffer"
        )


def check_unmodified(label: str, name: str | None) -> None:
    """Refuse a replay of what was changed since the forward pass.

    Args:
        label: What to call the layer.
        name: The name of a tensor that it reads, and that was changed in place.

    Raises:
        RuntimeError: If there is one.
    """
    if name is not None:
        raise RuntimeError(
            f"{name} of {label} was modified in place between forward and backward: "
            f"step the optimizer after backward, or change a copy"
        )


def check_state_unmodified(label: str, unmodified: bool) -> None:
    """Refuse to rebuild states from one that was changed in place.

    Args:
        label: What to call the state: the input of a pass, or the output of a layer.
        unmodified: Whether it is what it was.

    Raises:
        RuntimeError: If it is not.
    """
    if not unmodified:
        raise RuntimeError(
            f"the {label} was modified in place after the forward pass, so the states "
            f"before it cannot be rebuilt: write `y = y + 1` in place of `y += 1`"
        )


def check_unbroken(label: str, above: str, same: bool) -> None:
    """Refuse a state that was changed between two layers.

    Args:
        label: What to call the layer that receives it.
        above: What to call the layer that returned it.
        same: Whether it is the same memory, unchanged.

    Raises:
        RuntimeError: If it is not.
    """
    if not same:
        raise RuntimeError(
            f"the input of {label} is not the output of {above}: a hook or an in-place "
            f"operation changed the state; use an invertible module for the change"
        )


# --- gradients ------------------------------------------------------------------------


def check_transforms(label: str) -> None:
    """Refuse a backward pass inside of a transform of `torch.func`.

    Raises:
        RuntimeError: If one is active.
    """
    if _torch.is_functorch_active():
        raise RuntimeError(
            f"{label} cannot be replayed inside of `torch.vmap` or another transform: "
            f"use `torch.autograd.grad(..., is_grads_batched=True)`"
        )


def check_closed(label: str, known: Sequence[Tensor], ends: Iterable[Node]) -> None:
    """Refuse a layer whose output depends on a tensor that would get no gradient.

    Raises:
        RuntimeError: If the graph that ends there has a leaf that is not in `known`.
    """
    foreign = foreign_leaf(ends, known)
    if foreign is not None:
        raise RuntimeError(_not_an_input(label, f" of shape {tuple(foreign.shape)}"))


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
        f"parameter of the layer nor its context: register it and read it there (not "
        f"through another reference), or pass it as context"
    )


def foreign_leaf(ends: Iterable[Node], known: Sequence[Tensor]) -> Tensor | None:
    """Return a leaf that nodes depend on other than through `known`, if any."""
    leaves = {id(t) for t in known if t.grad_fn is None}
    seen: set[Node | None] = {t.grad_fn for t in known}
    pending = [node for node in ends if node not in seen]
    while pending:
        node = pending.pop()
        parents = node.next_functions
        if not parents:  # only the node of a leaf has none
            leaf: Tensor | None = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in leaves:
                return leaf
        for parent, _ in parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return None
