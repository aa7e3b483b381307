"""Errors when a compiled pass is traced, and assertions when its graph runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch.composite import Step, inner_steps
from invtorch.engine.checks import has_hooks
from invtorch.engine.guard.blocks import blocks_of
from invtorch.engine.guard.fingerprint import PROBES
from invtorch.engine.guard.fingerprint import mark as mark_of
from invtorch.engine.guard.tolerance import SAME, distance, relative_error, tolerance
from invtorch.precision import autocast_dtype, eps_of, is_differentiable, tf32_dtypes
from invtorch.recording import Context

LONGEST = 254  # characters: CUDA does not accept longer messages of assertions


# --- when the pass is traced ----------------------------------------------------------


def check_repeatable(label: str, module: nn.Module) -> None:
    """Refuse a layer that depends on more than its arguments.

    Raises:
        RuntimeError: If the module draws random numbers, updates running statistics,
            has hooks, has no shape yet, or has a `memory` of its own.
    """
    reason = ""
    if getattr(module, "memory", None) not in (None, "invert"):
        reason = f"has memory={module.memory!r}"
    for part in module.modules():
        reason = reason or _reason(part)
    if reason:
        raise RuntimeError(
            f"{label} {reason}, which cannot be repeated under torch.compile: compile "
            f"the conditioners alone, or set memory='store'"
        )


def check_composites(steps: Sequence[Step]) -> None:
    """Refuse hooks of modules whose parts are run in their place.

    Raises:
        RuntimeError: If a composite or an inverse view has hooks.
    """
    for step in steps:
        inner = inner_steps(step)
        if inner is None:
            continue  # `check_repeatable` sees the others
        if has_hooks(step.module):
            raise RuntimeError(
                f"{type(step.module).__name__} has hooks, which cannot be called under "
                f"torch.compile, where its layers are run one by one: put them on the "
                f"outermost container, or set memory='store'"
            )
        check_composites(inner)


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


def _reason(part: nn.Module) -> str:
    name = type(part).__name__
    if isinstance(part, _torch.Dropout) and part.training and part.p > 0:
        return f"draws random numbers ({name})"
    statistics = isinstance(part, _torch.RunningStatistics) and part.track_running_stats
    if statistics and part.training:
        return f"updates running statistics ({name})"
    if isinstance(part, _torch.SpectralNorm) and part.training:
        return f"updates its estimate of the norm ({name})"
    if isinstance(part, _torch.LazyModule):
        return f"has parameters without a shape ({name})"
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
    state: Sequence[Tensor], computed: float, growth: float = 1.0
) -> float:
    """Return the tolerance of the guard for a state."""
    return tolerance(_eps(state), computed, growth)


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


def _energy(tensor: Tensor) -> Tensor:
    """Return the sum of squares, without an overflow of half precision."""
    sizes = tensor.detach().abs()
    half = sizes.dtype in (torch.float16, torch.bfloat16)
    return (sizes.float() if half else sizes).square().sum()


def _assert(condition: Tensor, message: str) -> None:
    """Assert in the graph, with a message that is cut to the length CUDA accepts."""
    _torch.assert_async(condition, message[:LONGEST])
