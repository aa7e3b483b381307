"""What a replay under `torch.compile` would get wrong, seen before or noticed after."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrizations import _SpectralNorm

from invtorch.engine.drift import LEAP, rounded, tolerance
from invtorch.engine.fingerprint import PROBES, fingerprint, size
from invtorch.functional import autocast_enabled

SAME = 64  # eps that a mark may be off when it is computed again
LONGEST = 254  # characters: CUDA refuses an assertion that says more
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def check_replayable(label: str, module: nn.Module) -> None:
    """Refuse a layer that is seen to depend on more than its arguments.

    Raises:
        RuntimeError: If the module draws random numbers, moves running statistics,
            calls hooks, has no shape yet, or is to keep more than its container.
    """
    reason = ""
    if getattr(module, "memory", None) not in (None, "invert"):
        reason = f"has memory={module.memory!r}"
    for part in module.modules():
        reason = reason or _reason(part)
    if reason:
        raise RuntimeError(
            f"{label} {reason}, which cannot be repeated under torch.compile: "
            f"compile the conditioners one by one, call the container outside of the "
            f"compiled function, or set memory='store'"
        )


def check_arguments(state: Sequence[Tensor], context: Sequence[object]) -> None:
    """Refuse what a graph could not differentiate or hold.

    Raises:
        RuntimeError: If a state has integers, or a context is not a tensor.
    """
    whole = [t.dtype for t in state if not (t.is_floating_point() or t.is_complex())]
    other = [type(c).__name__ for c in context if not isinstance(c, Tensor)]
    if whole or other:
        what = f"a state in {whole[0]}" if whole else f"a context that is a {other[0]}"
        raise RuntimeError(
            f"{what} is not supported under torch.compile: hand tensors on as context, "
            f"call the container outside of the compiled function, or set "
            f"memory='store'"
        )


def _reason(part: nn.Module) -> str:
    name = type(part).__name__
    if isinstance(part, _DropoutNd) and part.training and part.p > 0:
        return f"draws random numbers ({name})"
    if isinstance(part, _NormBase) and part.training and part.track_running_stats:
        return f"moves running statistics ({name})"
    if isinstance(part, _SpectralNorm) and part.training:
        return f"moves what it estimates the norm with ({name})"
    if isinstance(part, LazyModuleMixin):
        return f"has parameters without a shape until it is called ({name})"
    if any(getattr(part, hooks) for hooks in HOOKS):
        return f"has hooks (on its {name})"
    return ""


def check_closed(label: str, outputs: Sequence[Tensor]) -> None:
    """Refuse a layer whose output needs a gradient although no input of it does.

    Raises:
        RuntimeError: If it does.
    """
    if any(t.requires_grad for t in outputs):
        raise RuntimeError(
            f"{label} reads a tensor that needs a gradient but is neither a parameter "
            f"of the layer nor its context, so its gradient would be lost: register it "
            f"as a parameter, or pass it as context"
        )


@torch.library.custom_op(
    "invtorch::marks", mutates_args=(), schema="(Tensor[] state) -> Tensor"
)
def mark(state: Sequence[Tensor]) -> Tensor:
    """Return fingerprint and norm of each tensor of a state, as one node of a graph."""
    numbers = fingerprint(tuple(state)), size(tuple(state)).unsqueeze(1)
    return torch.cat([n.to(_exact(state)) for n in numbers], dim=1)


@mark.register_fake
def _(state: Sequence[Tensor]) -> Tensor:
    return state[0].new_empty(len(state), PROBES + 1, dtype=_exact(state))


def _exact(state: Sequence[Tensor]) -> torch.dtype:
    double = (torch.float64, torch.complex128)
    return torch.float64 if any(t.dtype in double for t in state) else torch.float32


def noise_of(module: nn.Module, state: Sequence[Tensor]) -> float:
    """Return the eps of the coarsest dtype that a layer computes in."""
    floating = [p for p in module.parameters() if p.is_floating_point()]
    parameters = [*floating, *(p for p in module.parameters() if p.is_complex())]
    dtypes = {p.dtype for p in parameters}
    device = state[0].device
    if autocast_enabled(device.type):
        dtypes.add(torch.get_autocast_dtype(device.type))
    dtypes |= rounded(parameters, device)
    return max([_eps(state), *[torch.finfo(dtype).eps for dtype in dtypes]])


def tolerance_of(state: Sequence[Tensor], noise: float, growth: float = 1.0) -> float:
    """Return how far a state may be off, by the rule of the guard."""
    return tolerance(_eps(state), noise, growth)


def _eps(state: Sequence[Tensor]) -> float:
    return max(torch.finfo(t.dtype).eps for t in state)


def growth_of(table: Tensor) -> Tensor:
    """Return by how much the state grows or shrinks in a pass, as a guard counts it.

    Args:
        table: The marks of all of its states.
    """
    sizes = torch.linalg.vector_norm(table[:, :, -1], dim=1)
    there, most = sizes > 0, math.log(LEAP)
    first = there.int().argmax()
    places = torch.arange(len(sizes), device=sizes.device)
    last = torch.where(there, places, first).cummax(0).values  # zeros are skipped
    steps = torch.where(there, sizes, 1.0).log()[last].diff().nan_to_num(0.0)
    way = functional.pad(steps.clamp(-most, most).cumsum(0), (1, 0))
    growth: Tensor = (way.amax() - way.amin()).exp()
    return growth


def check_finite(label: str, norms: Tensor) -> None:
    """Assert in the graph that a state of the forward pass was finite."""
    _require(
        norms.isfinite().all(),
        f"{label} made NaN or Inf of a finite state (or was given them): do not step "
        f"with these gradients; bound what its conditioner returns, or lower the "
        f"learning rate",
    )


def check_unchanged(now: Tensor, before: Tensor) -> None:
    """Assert in the graph that the output of a pass is what it was.

    Args:
        now: The mark of the output when its gradient has come.
        before: The mark of it in the forward pass.
    """
    limit = SAME * torch.finfo(before.dtype).eps
    close = (now - before).abs() <= limit * before.abs().amax(1, keepdim=True)
    _require(
        (close | before.isnan() | before.isinf()).all(),
        "the output of an invertible container was changed in place inside of a "
        "compiled function, so that the states before it cannot be rebuilt: change a "
        "copy of it, for instance `y = y + 1` in place of `y += 1`",
    )


def scales_of(before: Tensor, after: Tensor, above: Tensor) -> Tensor:
    """Return by what size a rebuilt state is judged, for each tensor of it.

    The larger one of those before and after the layer; where zeros are handed on, that
    of the states above, whose rounding it has.

    Args:
        before: The mark of the layer's input in the forward pass.
        after: The mark of its output in the forward pass.
        above: The sizes by which the state above was judged.
    """
    own = torch.maximum(before[:, -1], after[:, -1])
    return torch.where(own > 0, own, above)


def check_rebuilt(
    label: str,
    rebuilt: Tensor,
    before: Tensor,
    scales: Tensor,
    limits: tuple[float, float],
    steep: Tensor,
) -> None:
    """Assert in the graph that a rebuilt state is the one of the forward pass.

    Args:
        label: What to call the layer.
        rebuilt: The mark of its rebuilt input.
        before: The mark of its input in the forward pass.
        scales: By what size each tensor of it is judged.
        limits: How far off a tensor of it may be, in units of that: usually, and where
            the state grows beyond all digits.
        steep: Whether it does.
    """
    distances = (rebuilt - before)[:, :-1].square().mean(1).sqrt()
    usual, least = limits
    allowed = torch.where(steep, least, usual) * scales
    _require(
        (distances <= allowed).all(),
        f"the state rebuilt by inverting {label} is off by more than {usual:.1e} of "
        f"its size ({least:.1e} where it grows beyond all digits): do not step with "
        f"these gradients; set more `anchors=`, a finer `state_dtype=`, or "
        f"memory='store'",
    )


def check_round_trip(
    label: str,
    again: Sequence[Tensor],
    output: Sequence[Tensor],
    least: Sequence[Tensor],
    limit: float,
) -> None:
    """Assert in the graph that a replay arrives where the forward pass did.

    What `check_replayable` cannot see, such as random numbers of a function, shows
    here, in the backward pass.

    Args:
        label: What to call the layer.
        again: What it returned now.
        output: The state from which its input was rebuilt, or the one above an anchor.
        least: By what size each tensor of it is judged at least.
        limit: How far off it may be.
    """
    for one, other, floor in zip(again, output, least, strict=True):
        difference = _energy(one - other)
        scale = torch.maximum(_energy(other), floor.square().to(difference))
        _require(
            difference <= limit**2 * scale + torch.finfo(scale.dtype).tiny,
            f"{label} did not repeat itself when its input was rebuilt: it draws "
            f"random numbers, reads something that changes, or has a wrong inverse; "
            f"set memory='store' under torch.compile",
        )


def _energy(tensor: Tensor) -> Tensor:
    """Return the sum of squares, which half precision could not hold."""
    sizes = tensor.detach().abs()
    half = sizes.dtype in (torch.float16, torch.bfloat16)
    return (sizes.float() if half else sizes).square().sum()


def _require(condition: Tensor, message: str) -> None:
    """Assert in the graph, and say in as many characters as CUDA takes what failed."""
    torch._assert_async(condition, message[:LONGEST])
