"""What a replay under `torch.compile` would get wrong, seen before or noticed after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from invtorch.functional import autocast_enabled

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def check_replayable(label: str, module: nn.Module) -> None:
    """Refuse a layer that is seen to depend on more than its arguments.

    Raises:
        RuntimeError: If the module draws random numbers, moves running statistics,
            calls hooks, or is to keep more than its container.
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


def _reason(part: nn.Module) -> str:
    name = type(part).__name__
    if isinstance(part, _DropoutNd) and part.training and part.p > 0:
        return f"draws random numbers ({name})"
    if isinstance(part, _NormBase) and part.training and part.track_running_stats:
        return f"moves running statistics ({name})"
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


def check_round_trip(
    label: str, again: Sequence[Tensor], output: Sequence[Tensor]
) -> None:
    """Assert in the graph that a replay arrives where the forward pass did.

    What `check_replayable` cannot see, such as random numbers of a function, shows
    here, in the backward pass.
    """
    for one, other in zip(again, output, strict=True):
        half = autocast_enabled(one.device.type)
        eps = torch.finfo(torch.bfloat16 if half else one.dtype).eps
        difference = (one - other).detach().abs().square().sum()
        scale = other.detach().abs().square().sum()
        torch._assert_async(
            difference <= eps * scale + torch.finfo(scale.dtype).tiny,
            f"{label} did not repeat itself when its input was rebuilt: it draws "
            f"random numbers, reads something that changes, or has a wrong inverse; "
            f"set memory='store' under torch.compile",
        )
