"""Channels that skip the coarser levels of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from invtorch import InvertibleModule, InvertibleSequential, OnPart, VolumePreserving
from invtorch.module import rearranged

State: TypeAlias = Tensor | tuple[Tensor, ...]


class SetAside(VolumePreserving):
    r"""Split the first tensor of a state; its first channels are processed further.

    $$ (x, z_1, \ldots, z_n) \mapsto (x', s, z_1, \ldots, z_n) $$

    $x'$ has the first `sizes[0]` channels of $x$, and $s$ the others. Along axes whose
    size is no multiple of the stride, $x'$ ends at the last multiple, such that it can
    be downsampled. What is left over is then one more tensor, of shape
    `(batch, entries)`, behind $s$. So sizes need not be known before, and no value is
    padded or cropped. The inverse reads the sizes off $s$.

    Tensors that are set aside do not share memory with $x$, which is freed.

    Args:
        sizes: The number of channels that are processed further, and of the others.
        stride: The sizes of the blocks of the downsampling that follows.

    Shape:
        `(batch, channels, *space)`, or a tuple that begins with such a tensor; the
        output is a tuple.

    Raises:
        ValueError: If the state has other channels, or is smaller than a block.

    Examples:
        >>> from invtorch.nets.set_aside import SetAside
        >>> aside = SetAside((1, 2), stride=(2, 2))
        >>> x = torch.randn(1, 3, 5, 4)
        >>> [tuple(t.shape) for t in aside(x)]
        [(1, 1, 4, 4), (1, 2, 5, 4), (1, 4)]
        >>> torch.equal(aside.inverse(aside(x)), x)
        True
    """

    def __init__(self, sizes: tuple[int, int], stride: Sequence[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.stride = tuple(stride)

    unchanged = rearranged

    def forward(self, x: State, *_: Any) -> tuple[Tensor, ...]:
        """Split the first tensor."""
        first, *others = (x,) if isinstance(x, Tensor) else x
        self._check(first)
        inner, aside = first.split(self.sizes, 1)
        *borders, inner = self._without_borders(inner)
        if borders:
            others = [torch.cat([b.flatten(1) for b in borders], 1), *others]
        # a view would keep the memory of x while the coarser levels run
        return inner, aside.clone(), *others

    def inverse(self, y: tuple[Tensor, ...], *_: Any) -> State:
        """Join the tensors again."""
        inner, aside, *others = self._checked(y)
        if inner.shape[2:] != aside.shape[2:]:
            inner = self._with_borders(inner, others.pop(0), aside)
        x = torch.cat([inner, aside], 1)
        return (x, *others) if others else x

    def extra_repr(self) -> str:
        """Show the numbers of channels, and the strides."""
        return f"sizes={self.sizes}, stride={self.stride}"

    def _without_borders(self, x: Tensor) -> list[Tensor]:
        """Cut what is left over off one axis after another."""
        borders = []
        for axis, s in enumerate(self.stride, start=2):
            rest = x.shape[axis] % s
            if rest:
                x, border = x.split([x.shape[axis] - rest, rest], axis)
                borders.append(border)
        return [*borders, x]

    def _with_borders(self, x: Tensor, entries: Tensor, aside: Tensor) -> Tensor:
        """Undo `_without_borders`; `aside` has the sizes of the result."""
        shapes, shape = {}, [len(x), x.shape[1], *aside.shape[2:]]
        for axis, s in enumerate(self.stride, start=2):
            rest = shape[axis] % s
            if rest:
                shapes[axis] = [*shape[:axis], rest, *shape[axis + 1 :]]
                shape[axis] -= rest
        counts = [math.prod(one[1:]) for one in shapes.values()]
        borders = entries.split(counts, 1)
        for axis, border in [*zip(shapes, borders, strict=True)][::-1]:
            x = torch.cat([x, border.reshape(shapes[axis])], axis)
        return x

    def _checked(self, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the input of the inverse if it has the shapes that forward returns."""
        found = tuple(tuple(t.shape[1:]) for t in y) if isinstance(y, tuple) else ()
        if len(found) > 1:
            kept = [n - n % s for n, s in zip(found[1][1:], self.stride, strict=False)]
            rest = math.prod(found[1][1:]) - math.prod(kept)
            expected = [(self.sizes[0], *kept), (self.sizes[1], *found[1][1:])]
            expected += [(self.sizes[0] * rest,)] if rest else []
            if list(found[: len(expected)]) == expected:
                return y
        raise ValueError(
            f"tensors of shapes {list(found)} without the batch do not fit the inverse "
            f"of SetAside(sizes={self.sizes}, stride={self.stride})"
        )

    def _check(self, x: Tensor) -> None:
        axes = len(self.stride)
        if x.ndim != axes + 2 or x.shape[1] != sum(self.sizes):
            raise ValueError(
                f"a state of shape {tuple(x.shape)} does not fit: this level needs "
                f"(batch, {sum(self.sizes)} channels, ...) with {axes} axes of space"
            )
        if any(n < s for n, s in zip(x.shape[2:], self.stride, strict=True)):
            raise ValueError(
                f"a state of size {tuple(x.shape[2:])} is smaller than the stride "
                f"{self.stride}: use fewer levels, or a stride of 1 along short axes"
            )


def on_first(level: int, *modules: InvertibleModule) -> list[InvertibleModule]:
    """Apply modules to the first tensor of a state; at level 0 it is the whole state.

    Examples:
        >>> from invtorch.nets.set_aside import on_first
        >>> (layer,) = on_first(1, Permute(2, "reverse"), Permute(2, "reverse"))
        >>> x = torch.randn(3, 2), torch.randn(3, 4)
        >>> all(map(torch.equal, layer(x), x))
        True
    """
    if level == 0:
        return [*modules]
    return [OnPart(InvertibleSequential(*modules), 0)]
