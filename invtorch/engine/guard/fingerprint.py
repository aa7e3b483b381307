"""The mark of a state: a few numbers by which a rebuilt state is compared with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from invtorch._torch import same_as
from invtorch.engine.guard.blocks import Blocks, blocks_of
from invtorch.engine.guard.marks import uncounted
from invtorch.precision import is_differentiable, no_autocast

# Projections of a block. Of an error that looks random to them, 16 estimate the size to
# a factor of 4 but for one case in 10 million; 4 did so but for one in 140. A CPU with
# vectors of 16 numbers takes no longer for 16 of them than for 12.
PROBES = 16
WIDEST = 1024  # largest number of columns: it bounds the memory of the weights
SHORT = 64  # fewer elements of a sample are joined with those of other samples


def mark(state: tuple[Tensor, ...]) -> Tensor:
    """Return the projections of the blocks of a state, and in the last column norms.

    Returns:
        Shape `(blocks, PROBES + 1)`, first the blocks of the first tensor.
    """
    return _joined([_mark(t) for t in state])


def _mark(tensor: Tensor) -> Tensor:
    projections = fingerprint((tensor,))
    norms = norms_of(projections).to(projections.dtype)
    if not is_differentiable(tensor):
        norms = torch.zeros_like(norms)
    return torch.cat([projections, norms.unsqueeze(1)], dim=1)


def norms_of(projections: Tensor) -> Tensor:
    """Estimate the norms of blocks from their projections, in double precision.

    They are as exact as estimates of errors are. Squares of numbers in single precision
    need the range of double precision.
    """
    norms: Tensor = torch.linalg.vector_norm(projections, dim=1, dtype=torch.float64)
    return norms / math.sqrt(PROBES)


class Last:
    """The numbers of the tensors of the last state.

    States one after another may share a tensor, such as a part that layers leave as it
    is. It is read once.

    Args:
        function: Returns the numbers of a state, such as its `fingerprint`.
    """

    def __init__(self, function: Callable[[tuple[Tensor, ...]], Tensor]) -> None:
        self.function = function
        self.known: list[tuple[Any, Tensor]] = []

    def __call__(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return the numbers of a state."""
        if len(state) == 1:
            self.known = []
            return self.function(state)
        known, self.known = self.known, []
        for tensor in state:
            key = same_as(tensor)
            numbers = next((n for other, n in known if other == key), None)
            if numbers is None:
                numbers = self.function((tensor,))
            self.known.append((key, numbers))
        return _joined([numbers for _, numbers in self.known])

    def forget(self) -> None:
        """Free the numbers: no state follows."""
        self.known = []


def fingerprint(state: tuple[Tensor, ...]) -> Tensor:
    r"""Return a few random projections of each block of a state.

    The elements of a block are the rows $x_r$ of a matrix. With random weights $W_r$
    and random orthogonal matrices $Q_r$, the projections are

    $$ f = \sum_r Q_r W_r x_r, \qquad
       \mathbb{E}\,\lVert f(x + \delta) - f(x) \rVert^2 / 16 = \lVert\delta\rVert^2 $$

    So the difference of two fingerprints estimates the distance of two blocks. Each
    projection has weights of its own, independent of the others. A block is read once.
    Every element contributes, so that an error of a single element is detected, and so
    are NaN and Inf.

    Args:
        state: The tensors, without a graph.

    Returns:
        The projections, shape `(blocks, PROBES)`.
    """
    with no_autocast(state[0]):
        return _joined([_project(_real(t), blocks_of(t)) for t in state])


def _project(tensor: Tensor, blocks: Blocks) -> Tensor:
    dtype = _exact(tensor)
    if not tensor.numel():
        return tensor.new_zeros(1, PROBES, dtype=dtype)
    x = blocks.of(tensor.to(dtype))
    if x.shape[1] > 1 and x.shape[3] < SHORT:
        x = x.transpose(1, 2).flatten(2).unsqueeze(1)
    parts, samples, groups, length = x.shape
    kinds, width, padded = _rows(length)
    if padded > length:
        x = F.pad(x, (0, padded - length))
    rows = padded // width * samples
    first, second = _weights(kinds, width, rows, dtype, tensor.device)
    y = torch.bmm(x.reshape(-1, kinds, width).transpose(0, 1), first)
    if rows == 1:
        return y.view(-1, PROBES)
    if samples > 1:  # those of one block come together
        y = y.view(kinds, parts, samples, groups, -1).transpose(2, 3)
    return torch.bmm(y.reshape(kinds, parts * groups, -1), second).sum(0)


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([p.to(parts[0].device, torch.float64) for p in parts])


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.is_floating_point() else tensor.double()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=1024)
def _rows(length: int) -> tuple[int, int, int]:
    """Return how the elements of a block are cut into rows.

    Rows take turns with several kinds of weights. Otherwise an error that is the same
    in every row, as a wrong offset is, would be multiplied with one kind of weights
    only, and would be hidden or exaggerated if that one happens to.

    Returns:
        The number of kinds, the length of a row, and the length that the rows have in
        all: that of the block if a division without a rest was found.
    """
    least = math.ceil(length / WIDEST)
    for rows in range(least, 4 * least + 1):
        for kinds in (4, 3, 5, 7, 2) if rows > 1 else (1,):
            if length % rows == 0 == rows % kinds:
                return kinds, length // rows, length
    rows = 4 * math.ceil(least / 4)
    width = math.ceil(length / rows)
    return 4, width, rows * width


@functools.lru_cache(maxsize=64)
def _weights(
    kinds: int, width: int, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw the weights of the rows and of the sums over them.

    The weights have random signs and unit variance. Their absolute values are between
    about 0.75 and 1.25, so that a value that moved to another position is detected.

    Returns:
        Weights of shape `(kinds, width, PROBES)`, and of shape `(kinds, rows / kinds *
        PROBES, PROBES)`: an orthogonal matrix for each row, if there are several.
    """
    generator = torch.Generator("cpu").manual_seed(width)
    options: dict[str, Any] = {"device": "cpu", "dtype": dtype, "generator": generator}
    uniform = torch.rand(kinds, width, PROBES, **options).sub_(0.5)
    weights = uniform.sign().mul_(0.75).add_(uniform).div_(math.sqrt(1 + 1 / 48))
    if rows == 1:  # there is nothing to add up
        return _uncounted(weights).to(device), weights.new_empty(0)
    mixing = torch.linalg.qr(torch.randn(rows, PROBES, PROBES, **options)).Q
    mixing = mixing.reshape(kinds, -1, PROBES)
    return _uncounted(weights).to(device), _uncounted(mixing).to(device)


def _uncounted(weights: Tensor) -> Tensor:
    """Copy weights, which stay in a cache: they are not memory of the first pass."""
    return uncounted(weights.shape, weights.dtype).copy_(weights)
