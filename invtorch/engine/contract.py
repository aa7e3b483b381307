"""What a layer must keep to for its input to be rebuilt, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

from invtorch.engine.graph import foreign_leaf


def check_arity(label: str, expected: int, found: int) -> None:
    """Refuse a state that comes out as another number of tensors.

    Raises:
        RuntimeError: If it does.
    """
    if found != expected:
        raise RuntimeError(
            f"{label} returned {found} tensors for a state of {expected}: a state "
            f"keeps its number of tensors"
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
                f"{after.dtype}, so its input cannot be rebuilt: return "
                f"`y.to(x.dtype)`, or convert outside of the container"
            )


def check_log_det(label: str, log_det: object) -> None:
    """Refuse a log-determinant that is a plain number.

    Raises:
        TypeError: If it is no tensor.
    """
    if not isinstance(log_det, Tensor):
        raise TypeError(
            f"{label} returned a log-determinant that is a {type(log_det).__name__}: "
            f"return a tensor, one number a sample"
        )


def check_parts(label: str, parts: Iterable[nn.Module]) -> None:
    """Refuse a layer with a part whose parameters a replay cannot exchange.

    Args:
        label: What to call the layer.
        parts: The modules inside of it.

    Raises:
        RuntimeError: If `fully_shard` or `torch.jit` was applied to one of them.
    """
    for part in parts:
        if hasattr(type(part), "_get_fsdp_state"):
            raise RuntimeError(
                f"{label} has a part of its own ({type(part).__name__}) that "
                f"`fully_shard` was applied to, which a replay would gather at the "
                f"wrong time: apply `fully_shard` to the layer or to the container"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise RuntimeError(
                f"{label} has a part that `torch.jit` compiled, whose parameters and "
                f"buffers a replay cannot exchange: use the module that it was made "
                f"of, which `torch.compile` can compile, or set memory='store' on the "
                f"container"
            )


def check_kinds(label: str, same: bool) -> None:
    """Refuse a replay of modules that have become others.

    Raises:
        RuntimeError: If they have.
    """
    if not same:
        raise RuntimeError(
            f"the class or the dictionary of attributes of a module of {label} was "
            f"exchanged between the forward and the backward pass, which evaluates it "
            f"again: do so after backward"
        )


def check_shapes(label: str, tensors: Iterable[Tensor]) -> None:
    """Refuse a layer whose parameters or buffers have no shape yet.

    Raises:
        RuntimeError: If one has none.
    """
    if any(map(is_lazy, tensors)):
        raise RuntimeError(
            f"{label} has tensors without a shape, those of a lazy module: call the "
            f"container once under `torch.no_grad()`, which gives them one"
        )


def check_intact(label: str, intact: bool) -> None:
    """Refuse an inverse that works in place.

    Raises:
        RuntimeError: If the output that it was given is not what it was.
    """
    if not intact:
        raise RuntimeError(
            f"{label} modified in place the output from which its input was rebuilt, "
            f"and which the caller may still use: let its inverse return a new tensor"
        )


def check_unwritten(label: str, parameter: str | None, attribute: str | None) -> None:
    """Refuse a layer that writes into what it reads.

    Args:
        label: What to call the layer.
        parameter: The name of a parameter that its forward pass changed in place.
        attribute: The name of another tensor of it, not a buffer, that it changed so.

    Raises:
        RuntimeError: If there is one.
    """
    if parameter is not None:
        raise RuntimeError(
            f"{label} changed its parameter {parameter} in its own forward pass, which "
            f"a replay would not repeat: if that initializes it, call the container "
            f"once under `torch.no_grad()` before training"
        )
    if attribute is not None:
        raise RuntimeError(
            f"{label} changed its attribute {attribute} in place in its own forward "
            f"pass, which a replay would do again: register it as a buffer"
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
            f"{name} of {label} was modified in place between the forward and the "
            f"backward pass: step the optimizer after backward, or change a copy"
        )


def check_transforms(label: str) -> None:
    """Refuse a backward pass inside of a transform of `torch.func`.

    Raises:
        RuntimeError: If one is active.
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{label} cannot be evaluated again inside of `torch.vmap` or another "
            f"transform around a backward pass: give `torch.autograd.grad` the option "
            f"`is_grads_batched=True`, or call the container inside of the transform"
        )


def check_closed(label: str, known: Sequence[Tensor], ends: Sequence[Node]) -> None:
    """Refuse a layer whose output depends on a tensor that would get no gradient.

    Raises:
        RuntimeError: If the graph that ends there has a leaf that is not in `known`.
    """
    foreign = foreign_leaf(ends, known)
    if foreign is not None:
        raise RuntimeError(
            f"{label} reads a tensor of shape {tuple(foreign.shape)} that needs a "
            f"gradient but is neither a parameter of the layer nor its context, so its "
            f"gradient would be lost: register it as a parameter and read it there "
            f"rather than through another reference or something computed before, or "
            f"pass it as context"
        )
