"""Errors when a compiled pass is traced, and assertions when its graph runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch.composite import Step, inner_steps, more_than_its_steps
from invtorch.engine.checks import has_hooks
from invtorch.engine.guard.blocks import blocks_of
from invtorch.engine.guard.fingerprint import PROBES
from invtorch.engine.guard.fingerprint import mark as mark_of
from invtorch.engine.guard.tolerance import (
    SAME,
    distance,
    least_share,
    relative_error,
    tolerance,
)
from invtorch.module import MEMORY, InvertibleModule
from invtorch.precision import autocast_dtype, eps_of, is_differentiable, tf32_dtypes
from invtorch.recording import Context

KEEPING = MEMORY[1:]  # the strategies that keep more than the one of a graph
LONGEST = 254  # characters: CUDA does not accept longer messages of assertions


# --- when the pass is traced ----------------------------------------------------------


def check_deterministic(label: str, operation: str) -> None:
    """Refuse a layer that draws random numbers.

    Args:
        label: The name of the layer in messages.
        operation: The operation that draws them; empty if there is none.

    Raises:
        RuntimeError: If there is one.
    """
    if operation:
        raise RuntimeError(
            _not_repeatable(label, f"draws random numbers ({operation})")
        )


def check_no_checkpoint(label: str, traced: bool) -> None:
    """Refuse a layer that calls `torch.utils.checkpoint`.

    Raises:
        RuntimeError: If it does.
    """
    if traced:
        raise RuntimeError(_not_repeatable(label, "calls `checkpoint`"))


def check_arguments(state: Sequence[Tensor], context: Context) -> None:
    """Refuse states and contexts that a graph cannot differentiate or hold.

    Raises:
        RuntimeError: If a state has integers, or a context is not a tensor.
    """
    integers = [t.dtype for t in state if not is_differentiable(t)]
    values = (*context.args, *context.named.values())
    other = [type(c).__name__ for c in values if not isinstance(c, Tensor)]
    if integers or other:
        what = f"a state in {integers[0]}" if integers else ""
        what = what or f"a context that is a {other[0]}"
        raise RuntimeError(
            f"{what} is not supported under torch.compile: pass floating states and "
            f"tensors as context, or set memory='store'"
        )


def check_sizes() -> None:
    """Make a graph for these sizes of the inputs, and refuse others that are dynamic.

    Raises:
        RuntimeError: If the caller marked a size as dynamic.
    """
    if not _torch.specialize_sizes():
        raise RuntimeError(
            "a size marked by mark_dynamic is not supported under torch.compile, which "
            "makes a graph for each size of a container: use maybe_mark_dynamic"
        )


def check_global_hooks() -> None:
    """Refuse hooks of all modules.

    Raises:
        RuntimeError: If there are any.
    """
    if _torch.has_global_hooks():
        raise RuntimeError(
            "hooks of all modules cannot be called under torch.compile: remove them, "
            "or set memory='store'"
        )


def check_composites(steps: Sequence[Step]) -> None:
    """Refuse modules whose parts are run in their place, if they do more than that.

    Raises:
        RuntimeError: If a composite or an inverse view has hooks, keeps more than its
            container, or redefines a direction.
    """
    for step in steps:
        inner = inner_steps(step)
        if inner is None:
            continue  # `check_repeatable` sees the others
        reason = _more_than_its_parts(step.module)
        if reason:
            raise RuntimeError(
                f"{type(step.module).__name__} {reason}, which cannot take effect "
                f"under torch.compile, where its layers are run one by one: change "
                f"that, or set memory='store'"
            )
        check_composites(inner)


def _more_than_its_parts(module: InvertibleModule) -> str:
    if getattr(module, "memory", None) in KEEPING:
        return f"has memory={module.memory!r}"
    return more_than_its_steps(module)


def check_repeatable(label: str, module: nn.Module) -> None:
    """Refuse a layer that depends on more than its arguments.

    Raises:
        RuntimeError: If the module updates running statistics, has hooks, has no shape
            yet, has a `memory` of its own, or contains a `MultiheadAttention`.
    """
    memory, reason = getattr(module, "memory", None), ""
    if memory in KEEPING:
        raise RuntimeError(
            f"{label} has memory={memory!r}, which a graph does not support: leave it "
            f"out, or set memory='store' for the whole container"
        )
    for part in module.modules():
        reason = reason or _reason(part)
    if reason:
        raise RuntimeError(_not_repeatable(label, reason))


def _not_repeatable(label: str, reason: str) -> str:
    return (
        f"{label} {reason}, which cannot be repeated under torch.compile: compile "
        f"the conditioners alone, or set memory='store'"
    )


def _reason(part: nn.Module) -> str:
    name = type(part).__name__
    statistics = isinstance(part, _torch.RunningStatistics) and part.track_running_stats
    if statistics and part.training:
        return f"updates running statistics ({name})"
    if isinstance(part, _torch.SpectralNorm) and part.training:
        return f"updates its estimate of the norm ({name})"
    if isinstance(part, _torch.LazyModule):
        return f"has parameters without a shape ({name})"
    if isinstance(part, nn.MultiheadAttention):
        # Dynamo fails on views that it makes of its arguments in an autograd function
        return f"calls a {name}"
    if has_hooks(part):
        return f"has hooks (on its {name})"
    return ""


# --- what is computed in the graph ----------------------------------------------------


@torch.library.custom_op(
    "invtorch::marks", mutates_args=(), schema="(Tensor[] state) -> Tensor"
)
def mark(state: Sequence[Tensor]) -> Tensor:
    """Return projections and norm of each block of a state, as one operator."""
    return mark_of(tuple(state)).to(_mark_dtype(state))


@mark.register_fake
def _(state: Sequence[Tensor]) -> Tensor:
    rows = sum(blocks_of(t).number for t in state)
    return state[0].new_empty(rows, PROBES + 1, dtype=_mark_dtype(state))


def _mark_dtype(state: Sequence[Tensor]) -> torch.dtype:
    double = (torch.float64, torch.complex128)
    return torch.float64 if any(t.dtype in double for t in state) else torch.float32


def computed_eps(module: nn.Module, state: Sequence[Tensor]) -> float:
    """Return the eps of the coarsest dtype in which a layer computes."""
    parameters = [p for p in module.parameters() if is_differentiable(p)]
    dtypes = {p.dtype for p in parameters}
    device = state[0].device
    autocast = autocast_dtype(device.type)
    if autocast is not None:
        dtypes.add(autocast)
    dtypes |= tf32_dtypes(parameters, device)
    return max([_eps(state), *map(eps_of, dtypes)])


def state_tolerance(
    state: Sequence[Tensor], computed: float, steep: bool = False
) -> float:
    """Return the tolerance of the guard for a state, or for one that grows steeply."""
    return _tolerance(_eps(state), computed, steep)


@_torch.constant_in_graphs
def _tolerance(state: float, computed: float, steep: bool) -> float:
    # for dynamic shapes Dynamo makes inputs of global numbers, which it cannot print
    return tolerance(state, computed, math.inf if steep else 1.0)


def state_least_share(
    state: Sequence[Tensor], computed: float, steep: bool = False
) -> float:
    """Return the smallest share of a sample that is judged by its own size."""
    return _least_share(_eps(state), computed, steep)


@_torch.constant_in_graphs
def _least_share(state: float, computed: float, steep: bool) -> float:
    return least_share(state, computed, math.inf if steep else 1.0)


def _eps(state: Sequence[Tensor]) -> float:
    return max(eps_of(t.dtype) for t in state)


# --- what the graph asserts -----------------------------------------------------------


def assert_finite(label: str, norms: Tensor) -> None:
    """Assert in the graph that a state of the forward pass was finite."""
    _assert(
        norms.isfinite().all(),
        f"{label} made NaN or Inf of a finite state (or received them): do not step "
        f"with these gradients; bound its conditioner, or lower the learning rate",
    )


def assert_unchanged(now: Tensor, before: Tensor) -> None:
    """Assert in the graph that the output of a pass was not changed.

    Args:
        now: The mark of the output in the backward pass.
        before: Its mark in the forward pass.
    """
    # the compiler may add the sums of two marks of one state in another order
    limit = SAME * torch.finfo(before.dtype).eps
    close = (now - before).abs() <= limit * before.abs().amax(1, keepdim=True)
    _assert(
        (close | before.isnan() | before.isinf()).all(),
        "the output of an invertible container was changed in place in a compiled "
        "function: write `y = y + 1` instead of `y += 1`",
    )


def assert_rebuilt(
    label: str,
    rebuilt: Tensor,
    before: Tensor,
    scales: Tensor,
    limits: tuple[float, float],
    steep: Tensor,
) -> None:
    """Assert in the graph that a rebuilt state is the one of the forward pass.

    Args:
        label: The name of the layer in messages.
        rebuilt: The mark of its rebuilt input.
        before: The mark of its input in the forward pass.
        scales: The size relative to which the error of each block is measured.
        limits: The tolerance, and that for a state that grows by more than 1 / eps.
        steep: Whether the state does.
    """
    distances = distance(rebuilt[:, :-1], before[:, :-1])
    usual, least = limits
    allowed = torch.where(steep, least, usual)
    _assert(
        (relative_error(distances, scales) <= allowed).all(),
        f"the state rebuilt by inverting {label} is off by more than {usual:.1e} of "
        f"its size ({least:.1e} if it grows steeply): do not step with these "
        f"gradients; set more `anchors=`, a finer `state_dtype=`, or memory='store'",
    )


def assert_repeated(
    label: str,
    again: Sequence[Tensor],
    output: Sequence[Tensor],
    least: Sequence[Tensor],
    limit: float,
) -> None:
    """Assert in the graph that a replay returns the output of the forward pass.

    This detects what `check_repeatable` cannot, for instance a call of
    `functional.dropout`.

    Args:
        label: The name of the layer in messages.
        again: The output of the replay.
        output: The state from which its input was rebuilt, or the one above an anchor.
        least: The least size relative to which the error of each tensor is measured.
        limit: The tolerance.
    """
    for one, other, floor in zip(again, output, least, strict=True):
        difference = _energy(one - other)
        scale = torch.maximum(_energy(other), floor.square().to(difference))
        _assert(
            # `tiny`: squares of small numbers underflow
            difference <= limit**2 * scale + torch.finfo(scale.dtype).tiny,
            f"{label} did not repeat itself: it draws random numbers, reads something "
            f"that changes, or has a wrong inverse; set memory='store' under "
            f"torch.compile",
        )


def assert_repeated_from(
    label: str, again: Tensor, before: Tensor, scales: Tensor, limit: float
) -> None:
    """Assert in the graph that a replay from a kept input returns the output again.

    The state above may be rebuilt with an error, so that marks are compared.

    Args:
        label: The name of the layer in messages.
        again: The mark of the output of the replay.
        before: The mark of its output in the forward pass.
        scales: The size relative to which the error of each block is measured.
        limit: The tolerance.
    """
    distances = distance(again[:, :-1], before[:, :-1])
    _assert(
        (relative_error(distances, scales) <= limit).all(),
        f"{label} did not repeat itself: it draws random numbers, or reads something "
        f"that changes; set memory='store' under torch.compile",
    )


def _energy(tensor: Tensor) -> Tensor:
    """Return the sum of squares, without an overflow of half precision."""
    sizes = tensor.detach().abs()
    half = sizes.dtype in (torch.float16, torch.bfloat16)
    return (sizes.float() if half else sizes).square().sum()


def _assert(condition: Tensor, message: str) -> None:
    """Assert in the graph, with a message that is cut to the length CUDA accepts."""
    _torch.assert_async(condition, message[:LONGEST])
