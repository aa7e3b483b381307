"""Split a state in several tensors along one axis, and join them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invtorch._checks import check_axis, check_count
from invtorch.couplings.partition import size_along
from invtorch.module import VolumePreserving, rearranged


class Split(VolumePreserving):
    r"""Split a state in several tensors along one axis.

    $$ y = (x_1, \dots, x_n), \qquad x = [x_1, \dots, x_n] $$

    The inverse concatenates them. The layers that follow receive a tuple: `OnPart`
    applies a module to one of its tensors, `Join` makes one tensor of it again.

    Args:
        sizes: The number of entries of each part; or the number of the first of two
            parts. By default two halves, the first one rounded down.
        dim: The axis that is split, not that of the batch.

    Shape:
        Any tensor with `sum(sizes)` entries along `dim`, at least one for each part;
        the output is a tuple of tensors.

    Raises:
        TypeError: If a size or `dim` is not a whole number.
        ValueError: If a size is less than 1, or the sizes do not add up to those of
            the state.

    Examples:
        >>> net = InvertibleSequential(Split([1, 3]), Join([1, 3]))
        >>> x = torch.randn(2, 4, 8)
        >>> [tuple(part.shape) for part in net[0](x)]
        [(2, 1, 8), (2, 3, 8)]
        >>> torch.equal(net(x), x)
        True
    """

    def __init__(self, sizes: int | Sequence[int] | None = None, *, dim: int = 1):
        super().__init__()
        check_axis(dim)
        self.sizes = _checked(sizes)
        self.dim = dim

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override]
            self, x: Tensor, /, *context: Any
        ) -> tuple[Tensor, ...]:
            """Return the parts."""
            ...

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, ...]:
        """Return the parts."""
        return _parts(x, self.sizes, self.dim)

    def inverse(self, y: tuple[Tensor, ...], *_: Any) -> Tensor:
        """Concatenate the parts."""
        return _joined(y, self.sizes, self.dim)

    unchanged = rearranged

    def extra_repr(self) -> str:
        """Show the sizes and the axis."""
        return _shown(self.sizes, self.dim)


class Join(VolumePreserving):
    r"""Concatenate the tensors of a state along one axis.

    $$ y = [x_1, \dots, x_n] $$

    It is the inverse of `Split` with the same arguments. It needs to know the sizes,
    because its own inverse splits the state again.

    Args:
        sizes: The number of entries of each part; or the number of the first of two
            parts. By default two halves, the first one rounded down.
        dim: The axis along which they are concatenated, not that of the batch.

    Shape:
        A tuple of tensors that differ only along `dim`; the output is one tensor.

    Raises:
        TypeError: If a size or `dim` is not a whole number.
        ValueError: If a size is less than 1, or the parts have other sizes.

    Examples:
        >>> join = Join(2)
        >>> a, b = torch.randn(1, 2), torch.randn(1, 3)
        >>> [tuple(part.shape) for part in join.inverse(join((a, b)))]
        [(1, 2), (1, 3)]
    """

    def __init__(self, sizes: int | Sequence[int] | None = None, *, dim: int = 1):
        super().__init__()
        check_axis(dim)
        self.sizes = _checked(sizes)
        self.dim = dim

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override]
            self, x: tuple[Tensor, ...], /, *context: Any
        ) -> Tensor:
            """Concatenate the parts."""
            ...

    def forward(self, x: tuple[Tensor, ...], *_: Any) -> Tensor:
        """Concatenate the parts."""
        return _joined(x, self.sizes, self.dim)

    def inverse(self, y: Tensor, *_: Any) -> tuple[Tensor, ...]:
        """Return the parts."""
        return _parts(y, self.sizes, self.dim)

    unchanged = rearranged

    def extra_repr(self) -> str:
        """Show the sizes and the axis."""
        return _shown(self.sizes, self.dim)


Sizes = int | tuple[int, ...] | None


def _checked(sizes: int | Sequence[int] | None) -> Sizes:
    if sizes is None:
        return None
    if not isinstance(sizes, Sequence):
        check_count("sizes", sizes)
        return int(sizes)
    if len(sizes) < 2:
        raise ValueError(
            f"sizes is {list(sizes)}, but a state is split in at least 2 parts"
        )
    for i, size in enumerate(sizes):
        check_count(f"sizes[{i}]", size)
    return tuple(map(int, sizes))


def _of(total: int, sizes: Sizes) -> tuple[int, ...]:
    """Return the size of each part of `total` entries."""
    if isinstance(sizes, tuple):
        return sizes
    first = total // 2 if sizes is None else sizes
    return first, total - first


def _parts(state: Tensor, sizes: Sizes, dim: int) -> tuple[Tensor, ...]:
    total = size_along(state, dim)
    expected = _of(total, sizes)
    if sum(expected) != total or min(expected) < 1:
        raise ValueError(
            f"a state with {total} entries along dim {dim} cannot be split in parts of "
            f"{list(expected)}: they must add up to {total}, each at least 1"
        )
    parts: tuple[Tensor, ...] = state.split(expected, dim)
    return parts


def _joined(parts: tuple[Tensor, ...], sizes: Sizes, dim: int) -> Tensor:
    if not isinstance(parts, tuple):
        raise TypeError(
            f"the state is a {type(parts).__name__}, but only the tensors of a tuple "
            f"can be joined"
        )
    found = tuple(size_along(part, dim) for part in parts)
    expected = _of(sum(found), sizes)
    if found != expected:
        raise ValueError(
            f"the parts have {list(found)} entries along dim {dim}, but the sizes are "
            f"{list(expected)}: give these sizes to the layer"
        )
    return torch.cat(parts, dim)


def _shown(sizes: Sizes, dim: int) -> str:
    return f"sizes={'half' if sizes is None else sizes}, dim={dim}"
