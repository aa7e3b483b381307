"""By how much a rebuilt state may differ: one set of rules for both engines.

The eager guard and the graph of a compiled pass both keep the marks of all states: for
each block of a state a few projections, and the norm in the last column. The functions
here are written as tensor operations, which run in both engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from invtorch.engine.guard.blocks import Blocks

# Tolerances, in eps.
STEEP = 64.0  # for states that grow by more than 1 / eps: 4 times `anchors.BUDGET`
ROUNDED = 16.0  # of a part, relative to its whole sample: `anchors.BUDGET`
SAME = 64.0  # between two marks of one state, whose sums may be added in another order

LEAP = 10.0  # largest growth of one layer that counts: more is a change of units


def tolerance(state: float, computed: float, growth: float = 1.0) -> float:
    r"""Return the largest allowed error of a rebuilt state, relative to its size.

    $$ \max\bigl(\sqrt{\varepsilon_s},\;
       \sqrt{\min(\varepsilon_c, \varepsilon_{32})},\; 4\,\varepsilon_c\bigr) $$

    with $\varepsilon_s$ the eps of the state, $\varepsilon_c$ that of the computation
    and $\varepsilon_{32}$ that of float32. This is half of the digits in single and
    double precision. Half precision has too few digits for that, so that four roundings
    are allowed. The dtype of the conditioners counts even if the state has a finer one,
    because plain autograd in their precision would lose as many digits.

    If the state grows by more than $1/\varepsilon_c$, small errors have a large effect
    on the gradients. Then the tolerance is $64\,\varepsilon_c$, four times the budget
    of `anchors="auto"`, with which gradients were as exact as those of plain autograd.

    Args:
        state: The eps of the state's dtype.
        computed: The eps of the coarsest dtype in which the layer computes.
        growth: The factor by which the state grows or shrinks in this pass
            (`growth_of`).
    """
    half = math.sqrt(min(computed, torch.finfo(torch.float32).eps))
    usual = max(math.sqrt(state), half, 4 * computed)
    return min(usual, STEEP * computed) if growth * computed > 1 else usual


def growth_of(sizes: Tensor) -> Tensor:
    """Return the factor by which a state grows or shrinks in a pass, for the tolerance.

    At most a factor of ten counts for one layer: more is a change of units, which loses
    no digits. States of zeros do not count.

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


def whole_norms(norms: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the norms of tensors from those of their blocks, in double precision.

    Args:
        norms: The norms of the blocks, first those of the first tensor.
        counts: The number of blocks of each tensor.
    """
    squares = norms.double().square()
    if len({*counts}) == 1:
        return squares.view(len(counts), -1).sum(1).sqrt()
    sums = squares.new_zeros(len(counts))
    return sums.index_add(0, _owners(counts, norms.device), squares).sqrt()


def for_each_block(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Return for each block the value of its tensor.

    Args:
        values: One of each tensor.
        counts: The number of blocks of each tensor.
    """
    if len({*counts}) == 1:
        return values.repeat_interleave(counts[0])
    return values[_owners(counts, values.device)]


def _owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return for each block the index of its tensor."""
    places = [i for i, count in enumerate(counts) for _ in range(count)]
    return torch.tensor(places, device=device)


def floors_of(sizes: Tensor, ragged: bool = False) -> Tensor:
    """Return for each tensor of each state the size that a block of zeros is judged by.

    It is the size of the whole tensor. If that is zero too, it is the size in the next
    state above that is not zero, whose rounding error the rebuilt state has.

    Args:
        sizes: The norms of the tensors of all states, shape `(states, tensors)`.
        ragged: Whether the states have different numbers of tensors. Then a tensor may
            be part of another one in the next state: where all above are zero, the
            size of whole states counts.
    """
    if ragged:
        whole = torch.linalg.vector_norm(sizes, dim=1, keepdim=True)
        floors = floors_of(sizes)
        return torch.where(floors > 0, floors, floors_of(whole))
    last = len(sizes) - 1
    places = torch.arange(last + 1, device=sizes.device).unsqueeze(1)
    positive = torch.where(sizes > 0, places, last)
    return sizes.gather(0, positive.flip(0).cummin(0).values.flip(0))


def least_share(state: float, computed: float, growth: float = 1.0) -> float:
    """Return the smallest share of a sample that is judged by its own size.

    A smaller part of it, such as a channel of rounding errors beside large ones, may be
    off by what 16 roundings of the whole sample are. Layers that mix channels make no
    smaller error.

    Args:
        state: The eps of the state's dtype.
        computed: The eps of the coarsest dtype in which the layer computes.
        growth: As for `tolerance`.
    """
    allowed = tolerance(state, computed, growth)
    rounded = ROUNDED * max(state, computed)  # a rounding of a coarse one may flip
    return min(1.0, rounded / allowed) if allowed else 0.0


def sizes_of_samples(norms: Tensor, parts: Sequence[Blocks]) -> Tensor:
    """Return for each block of a state the norm of all groups of its samples.

    Args:
        norms: The norms of the blocks, first those of the first tensor.
        parts: How the tensors are divided; a single one if all are divided alike.
    """
    alone = len(parts) == 1
    pieces = [norms] if alone else norms.split([blocks.number for blocks in parts])
    whole = []
    for one, blocks in zip(pieces, parts, strict=True):
        groups = one.view(-1, blocks.groups)
        size = torch.linalg.vector_norm(groups, dim=1, keepdim=True)
        whole.append(size.expand_as(groups).reshape(-1))
    return torch.cat(whole)


def distance(projections: Tensor, others: Tensor) -> Tensor:
    """Estimate the distance of tensors from their projections, on the last axis."""
    # scaled first, because the square of a projection may overflow
    difference = (projections - others).abs()
    largest = difference.amax(-1, keepdim=True)
    scaled = torch.where(largest > 0, difference / largest, 0.0)
    return largest.squeeze(-1) * scaled.square().mean(-1).sqrt()


def relative_error(distance: Tensor, scale: Tensor) -> Tensor:
    """Return a distance relative to a size; relative to 0, only 0 is small."""
    ratio = torch.where(distance == 0, 0.0, distance / scale)
    return torch.where(distance.isfinite(), ratio, math.inf)
