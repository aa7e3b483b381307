"""The recommendation of a diagnosis: try other options, and report their effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch

from invtorch.diagnosis.gradients import containers, drift_warnings, gradients, warning
from invtorch.diagnosis.report import Diagnosis
from invtorch.diagnosis.states import Tensors, joined, precision, relative_error
from invtorch.module import InvertibleModule
from invtorch.recording import Context

STEEP = 3.0  # the largest gain of a layer without a recommendation to bound its scale
FINER = {  # a `state_dtype` with more digits, for each dtype
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
    torch.complex64: torch.float64,
}


def recommend(
    measured: Diagnosis,
    model: InvertibleModule,
    x: Any,
    context: Context,
    truth: list[Tensors],
) -> str:
    """Return the recommendation for the measurements of a model."""
    eps = torch.finfo(precision(x)).eps
    # sqrt(eps): half of the digits; a correct inverse loses only a few to rounding
    broken = [one for one in measured.layers if not one.round_trip <= math.sqrt(eps)]
    if broken:
        return (
            f"{broken[0].label} does not come back from its own output "
            f"({broken[0].round_trip:.1e} off): its inverse is wrong, it is not "
            f"deterministic, or its scale loses what it should bring back."
        )
    # 1.5: equally good gradients have different rounding errors
    if not measured.refusals and measured.gradient <= 1.5 * measured.plain:
        return (
            "The gradients are as good as those of plain autograd: nothing needs to "
            "change."
        )
    words = []
    steepest = max(measured.layers, key=lambda layer: layer.gain)
    if steepest.gain > STEEP:
        words.append(
            f"{steepest.label} multiplies an error by {steepest.gain:.2g} when it is "
            f"inverted: bound its scale."
        )
    # a growth of 1 / sqrt(eps) can take half of the digits
    if measured.growth > eps**-0.5:
        words.append(
            f"The state grows {measured.growth:.1e} times, where plain autograd loses "
            f"digits, too: bound the scale of the conditioners."
        )
    words += _try_remedies(measured, model, x, context, truth)
    return " ".join(words)


def _try_remedies(
    measured: Diagnosis,
    model: InvertibleModule,
    x: Any,
    context: Context,
    truth: list[Tensors],
) -> Iterator[str]:
    """Try options that could help, and report the error of the gradients with each."""
    yield (
        f"The gradients are {measured.gradient:.1e} off, those of plain autograd "
        f"{measured.plain:.1e}."
    )
    cures: dict[str, Any] = {"anchors": "auto"}
    if precision(x) in FINER:
        cures["state_dtype"] = FINER[precision(x)]
    for name, value in cures.items():
        changed = warning(deepcopy(model))
        for container in containers(changed):
            setattr(container, name, value)
        with drift_warnings() as warned:
            for _ in range(3):  # anchors="auto" places anchors from earlier passes
                warned.clear()
                cured = gradients(changed, x, context)
        error = relative_error(joined(cured), joined(truth))
        shown = repr(value) if isinstance(value, str) else str(value)
        yield f"With {name}={shown} they are {error:.1e} off{_suffix(warned)}."


def _suffix(warned: Sequence[str]) -> str:
    return ", and the guard still objects" if warned else ""
