"""The mark of a state: a few numbers by which a rebuilt state is compared with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from invtorch._torch import same_as
from invtorch.engine.guard.blocks import Blocks, blocks_of, blocks_of_shape
from invtorch.engine.guard.marks import Results, uncounted
from invtorch.precision import is_differentiable, no_autocast

# Projections of a block. Of an error that looks random to them, 16 estimate the size to
# a factor of 4 but for one case in 10 million; 4 did so but for one in 140. A CPU with
# vectors of 16 numbers takes no longer for 16 of them than for 12.
PROBES = 16
WIDEST = 1024  # largest number of columns: it bounds the memory of the weights
SHORT = 64  # fewer elements of a sample are joined with those of other samples

# Long blocks are added up to a few sums of rows before they are projected.
SUMS = (17, 19, 23, 13)  # how many, the first one that does not divide their length
SHORTEST_ROW, WIDEST_ROW = 32, 96
LONG = 4096  # elements of a block that are added up first
SUMMED = 0  # the mode of `torch.embedding_bag`


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
    if len(state) == 1:
        return _project(state[0])
    return _joined([_project(t) for t in state])


def _project(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        sums = _sums_of_rows(tensor.shape, tensor.dtype)
        if sums is not None:
            return sums.project(tensor)
    x = _converted(tensor)
    if not x.numel():
        return uncounted(x.new_zeros(1, PROBES))
    with no_autocast(tensor):
        return uncounted(_project_whole(x, blocks_of(tensor)))


def _project_whole(tensor: Tensor, blocks: Blocks) -> Tensor:
    """Return projections of all elements of each block."""
    x = blocks.of(tensor)
    if x.shape[1] > 1 and x.shape[3] < SHORT:
        x = x.transpose(1, 2).flatten(2).unsqueeze(1)
    parts, samples, groups, length = x.shape
    kinds, width, padded = _rows(length)
    if padded > length:
        x = F.pad(x, (0, padded - length))
    rows = padded // width * samples
    first, second = _weights(kinds, width, rows, x.dtype, x.device)
    y = torch.bmm(x.reshape(-1, kinds, width).transpose(0, 1), first)
    if rows == 1:
        return y.view(-1, PROBES)
    if samples > 1:  # those of one block come together
        y = y.view(kinds, parts, samples, groups, -1).transpose(2, 3)
    return torch.bmm(y.reshape(kinds, parts * groups, -1), second).sum(0)


class SumsOfRows(NamedTuple):
    """Projections of sums of rows, for long blocks.

    A CPU takes several times as long to multiply each element with 16 weights as to
    read it. So the rows of a block are first added up, each with one weight, to the
    sums of every 17th row. The sums are then multiplied with 16 weights each. No axis
    of the state has a multiple of 17 rows. So an error along any of them spreads over
    all sums, and one that is the same in each row is seen by 17 weights, not by one.

    Attributes:
        width: The length of a row.
        blocks: The number of blocks.
        results: Where projections are written.
        dtype: The dtype of the weights.
        bags: The arguments of `torch.embedding_bag` besides the rows.
        projection: The weights of the sums of a block.
    """

    width: int
    blocks: int
    results: Results
    dtype: torch.dtype
    bags: tuple[Any, ...]
    projection: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Return the projections of the blocks of a state."""
        if x.dtype != self.dtype:
            x = _converted(x)
        sums = torch.embedding_bag(x.reshape(-1, self.width), *self.bags)[0]
        x = sums.view(self.blocks, -1)
        return torch.mm(x, self.projection, out=self.results.take())


@functools.lru_cache(maxsize=16)
def _sums_of_rows(shape: torch.Size, dtype: torch.dtype) -> SumsOfRows | None:
    """Draw the weights of a state; `None` where its blocks are not long and even.

    They take a thirtieth of the memory of the state.

    Args:
        shape: The shape of the state.
        dtype: Its dtype.
    """
    batch, channels, samples, group, entries, piece = blocks = blocks_of_shape(shape)
    numel = shape.numel() * (1 + dtype.is_complex)
    length, dtype = numel // (batch * channels * entries) * group * piece, _exact(dtype)
    apart = group if blocks.pieces > 1 else 1  # runs of elements in a block
    run = length // apart
    lengths = (n for n in range(WIDEST_ROW, SHORTEST_ROW - 1, -1) if run % n == 0)
    width, uneven = next(lengths, 0), batch % samples or channels % group
    if samples * length < LONG or uneven or entries % piece or not width:
        return None
    rows = samples * length // width
    sums = next((n for n in SUMS if length % n), SUMS[0])
    with torch.device("cpu"):
        order = torch.cat([torch.arange(i, rows, sums) for i in range(sums)])
        counts = torch.tensor([len(range(i, rows, sums)) for i in range(sums)])
        offsets = F.pad(counts.repeat(blocks.number).cumsum(0), (1, 0))
        places = torch.arange(blocks.number * rows)
        above = -1, samples, blocks.groups // blocks.pieces
        places = places.view(*above, apart, blocks.pieces, run // width)
        places = places.transpose(3, 4).reshape(
            -1, samples, blocks.groups, rows // samples
        )
    places = places.transpose(1, 2).reshape(-1, rows)[:, order].flatten()
    # multiplied with those of the projection, so that they may differ by less
    drawn_rows = _drawn((rows,), _options(dtype, rows), spread=0.25)
    weights = drawn_rows[order].repeat(blocks.number)
    projection = _drawn((sums * width, PROBES), _options(dtype, width))
    places, offsets, weights, projection = map(
        uncounted, (places.int(), offsets.int(), weights, projection)
    )
    bags = places, offsets, False, SUMMED, False, weights, True
    results = Results(blocks.number, PROBES, dtype)
    return SumsOfRows(width, blocks.number, results, dtype, bags, projection)


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return uncounted(torch.cat([p.to(parts[0].device, torch.float64) for p in parts]))


def _converted(tensor: Tensor) -> Tensor:
    """Return the real numbers of a tensor in the dtype of its projections."""
    dtype = tensor.dtype
    if dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    exact = _exact(dtype)
    return tensor if tensor.dtype == exact else tensor.to(exact)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of projections; integers are exact in double precision."""
    single = dtype.is_floating_point or dtype.is_complex
    double = not single or dtype in (torch.float64, torch.complex128)
    return torch.float64 if double else torch.float32


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

    Returns:
        Weights of shape `(kinds, width, PROBES)`, and of shape `(kinds, rows / kinds *
        PROBES, PROBES)`: an orthogonal matrix for each row, if there are several.
    """
    options = _options(dtype, width)
    weights = _drawn((kinds, width, PROBES), options)
    if rows == 1:  # there is nothing to add up
        return uncounted(weights).to(device), weights.new_empty(0)
    mixing = torch.linalg.qr(torch.randn(rows, PROBES, PROBES, **options)).Q
    mixing = mixing.reshape(kinds, -1, PROBES)
    return uncounted(weights).to(device), uncounted(mixing).to(device)


def _options(dtype: torch.dtype, seed: int) -> dict[str, Any]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return {"device": "cpu", "dtype": dtype, "generator": generator}


def _drawn(
    shape: tuple[int, ...], options: dict[str, Any], spread: float = 0.5
) -> Tensor:
    """Draw weights of random signs and unit variance.

    The largest absolute value is about `spread` above the smallest, and 1 is between
    them, so that a value that moved to another position is detected.
    """
    uniform = torch.rand(shape, **options).sub_(0.5)
    drawn = uniform.sign().mul_(1 - spread / 2).add_(uniform, alpha=2 * spread)
    return drawn.div_(math.sqrt(1 + spread**2 / 12))
