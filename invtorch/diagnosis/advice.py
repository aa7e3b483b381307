"""The recommendation of a diagnosis: cures are tried, and their effect is stated."""

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

STEEP = 3.0  # a gain that a single layer should not have
FINER = {  # the precision of a state that would be rebuilt better
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
    torch.complex64: torch.float64,
}


def recommend(
    measured: Diagnosis,
    model: InvertibleModule,
    x: Any,
    context: tuple[Any, ...],
    truth: list[Tensors],
) -> str:
    """Return what to do about what was measured."""
    eps = torch.finfo(precision(x)).eps
    broken = [one for one in measured.layers if not one.round_trip <= math.sqrt(eps)]
    if broken:
        return (
            f"{broken[0].label} does not come back from its own output "
            f"({broken[0].round_trip:.1e} off): its inverse is wrong, it is not "
            f"deterministic, or its scale loses what it should bring back."
        )
    words = []
    steepest = max(measured.layers, key=lambda layer: layer.gain)
    if steepest.gain > STEEP:
        words.append(
            f"{steepest.label} multiplies an error by {steepest.gain:.2g} when it is "
            f"inverted: bound its scale."
        )
    if measured.growth > eps**-0.5:
        words.append(
            f"The state grows {measured.growth:.1e} times, where plain autograd loses "
            f"digits, too: bound the scale of the conditioners."
        )
    if not measured.refusals and measured.gradient <= 1.5 * measured.plain:
        words.append(
            "The gradients are as good as those of plain autograd: nothing needs to "
            "change."
        )
    else:
        words += _cures(measured, model, x, context, truth)
    return " ".join(words)


def _cures(
    measured: Diagnosis,
    model: InvertibleModule,
    x: Any,
    context: tuple[Any, ...],
    truth: list[Tensors],
) -> Iterator[str]:
    """Try what could help, and say by how much it does."""
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
            for _ in range(3):
                warned.clear()
                cured = gradients(changed, x, *context)
        error = relative_error(joined(cured), joined(truth))
        shown = repr(value) if isinstance(value, str) else str(value)
        yield f"With {name}={shown} they are {error:.1e} off{_refused(warned)}."


def _refused(warned: Sequence[str]) -> str:
    return ", and the guard still objects" if warned else ""
