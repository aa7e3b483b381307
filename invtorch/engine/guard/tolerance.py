"""By how much a rebuilt state may differ: one set of rules for both engines.

The eager guard and the graph of a compiled pass both keep a table of marks: for each
state and each of its tensors a few projections, and the norm in the last column. What
is computed from a table is written in tensor operations here, which run in either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

STEEP = 64.0  # eps that an error may reach where the state grows beyond all digits
LEAP = 10.0  # the growth of one layer that counts: more is a change of units
SAME = 64.0  # eps that a mark may differ by when it is computed again on another path


def tolerance(state: float, computed: float, growth: float = 1.0) -> float:
    """Return how far a rebuilt state may be off, relative to its size.

    Half of the digits of what is computed in, but of half precision nearly all: half of
    its digits would be too few. A finer state is judged by its conditioners, because
    plain autograd in their precision would lose as much.

    Where the state grows by more than one over this precision, small errors of it weigh
    heavily in the gradients: there it may be off by four times the budget of
    `anchors="auto"`, with which gradients were as exact as those of plain autograd.

    Args:
        state: The eps of the state's dtype.
        computed: The eps of the coarsest dtype that the layer computes in.
        growth: By how much the state grows or shrinks in this pass (`growth_of`).
    """
    half = math.sqrt(min(computed, torch.finfo(torch.float32).eps))
    usual = max(math.sqrt(state), half, 4 * computed)
    return min(usual, STEEP * computed) if growth * computed > 1 else usual


def growth_of(sizes: Tensor) -> Tensor:
    """Return by how much a state grows or shrinks on its way, as the tolerance counts.

    Of one layer at most a factor of ten counts: a leap beyond that changes the units in
    which the state is measured, and makes nothing less exact. States of zeros do not
    count.

    Args:
        sizes: The norms of the tensors of all states, shape `(states, tensors)`.
    """
    norms = torch.linalg.vector_norm(sizes, dim=1)
    positive, most = norms > 0, math.log(LEAP)
    first = positive.int().argmax()
    places = torch.arange(len(norms), device=norms.device)
    last = torch.where(positive, places, first).cummax(0).values  # skips zeros
    steps = torch.where(positive, norms, 1.0).log()[last].diff().nan_to_num(0.0)
    path = F.pad(steps.clamp(-most, most).cumsum(0), (1, 0))
    growth: Tensor = (path.amax() - path.amin()).exp()
    return growth


def scale_of(before: Tensor, after: Tensor, above: Tensor) -> Tensor:
    """Return the size by which the rebuilt input of a layer is judged, for each tensor.

    The larger of the norms before and after the layer. Where zeros are passed through,
    that of the states above, whose rounding a rebuilt state has.

    Args:
        before: The norms of the layer's input in the forward pass.
        after: The norms of its output in the forward pass.
        above: The sizes by which the state above was judged, if this one was rebuilt
            from it, else zeros.
    """
    own = torch.maximum(before, after)
    return torch.where(own > 0, own, above)


def distance(projections: Tensor, others: Tensor) -> Tensor:
    """Estimate the distance of tensors from their projections, on the last axis."""
    # scaled first: the square of a projection may be beyond the range of its dtype
    difference = (projections - others).abs()
    largest = difference.amax(-1, keepdim=True)
    scaled = torch.where(largest > 0, difference / largest, 0.0)
    return largest.squeeze(-1) * scaled.square().mean(-1).sqrt()


def relative_error(distance: Tensor, scale: Tensor) -> Tensor:
    """Return a distance relative to a size; nothing but zero is small beside zero."""
    ratio = torch.where(distance == 0, 0.0, distance / scale)
    return torch.where(distance.isfinite(), ratio, math.inf)
