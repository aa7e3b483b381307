"""The diagnosis: measure a model on a sample input, and recommend options."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch

from invtorch.composite import Step, elementary
from invtorch.diagnosis.advice import recommend
from invtorch.diagnosis.gradients import drift_warnings, gradients, stored, warning
from invtorch.diagnosis.inversion import measure_inversion
from invtorch.diagnosis.report import Diagnosis, LayerDiagnosis
from invtorch.diagnosis.states import in_double, joined, precision, relative_error
from invtorch.module import InvertibleModule
from invtorch.recording import Context


def diagnose(model: InvertibleModule, x: Any, *context: Any, **named: Any) -> Diagnosis:
    r"""Measure how well a model can be inverted and differentiated on a sample input.

    The loss is the mean square of the output. Its gradients are compared with those of
    plain autograd and with those in float64. For an input in half precision, plain
    autograd also keeps the state in the model's `state_dtype`. The gain of a layer is
    the factor by which its inverse multiplies a relative error:
    $\lVert \delta x \rVert / \lVert x \rVert$ divided by
    $\lVert \delta y \rVert / \lVert y \rVert$, for the input $x$ and the output $y$ of
    the layer. The model is copied and the input detached, so that neither changes.

    Args:
        model: A container, or any invertible module.
        x: A state, as in training.
        context: Further arguments of the model.
        named: Its keyword arguments.

    Returns:
        The diagnosis, with a recommendation in words.

    Raises:
        TypeError: If `model` is not an `InvertibleModule`.

    Examples:
        >>> from torch import nn
        >>> turns = [False, True, False]
        >>> layers = [AdditiveCoupling(nn.Linear(2, 2), swap=turn) for turn in turns]
        >>> diagnosis = diagnose(InvertibleSequential(*layers), torch.randn(5, 4))
        >>> print(diagnosis.recommendation)
        The gradients are as good as those of plain autograd: nothing needs to change.
    """
    if not isinstance(model, InvertibleModule):
        raise TypeError(
            f"model is a {type(model).__name__}, but only an InvertibleModule has "
            f"layers that are inverted: give its invertible part"
        )
    arguments = Context(context, named)
    exact = in_double(deepcopy(model))
    truth = gradients(stored(exact), *in_double((x, arguments)))
    with drift_warnings() as warned:
        inverted = gradients(warning(deepcopy(model)), x, arguments)
    half = torch.finfo(precision(x)).bits < 32  # plain autograd in the same mode
    plain = gradients(stored(deepcopy(model), finer=half), x, arguments)
    sizes, trips, gains = measure_inversion(deepcopy(model), exact, x, arguments)
    labels = [
        f"layer {i} ({type(step.module).__name__})"
        for i, step in enumerate(elementary([Step(model)]))
    ]
    layers = [
        LayerDiagnosis(
            label,
            trip,
            size / sizes[0],
            gain,
            relative_error(f, t),
            relative_error(p, t),
            relative_error(f, p),
        )
        for label, trip, size, gain, f, p, t in zip(
            labels, trips, sizes[1:], gains, inverted, plain, truth, strict=True
        )
    ]
    measured = Diagnosis(
        layers,
        gradient=relative_error(joined(inverted), joined(truth)),
        plain=relative_error(joined(plain), joined(truth)),
        growth=max(sizes) / min(sizes),
        gain=math.prod(gains),
        refusals=warned,
        recommendation="",
    )
    advice = recommend(measured, model, x, arguments, truth)
    return measured._replace(recommendation=advice)
