"""Hypothesis strategies for shapes, states and contexts.

Only this file imports hypothesis. Structure and a seed are drawn; the values come from
a generator with that seed, because a seed that fails is as good as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Shape = tuple[int, ...]


@st.composite
def shapes(
    draw: st.DrawFn,
    *,
    dims: int | None = None,
    channels: int | None = None,
    batch: tuple[int, int] = (1, 3),
    space: tuple[int, int] = (1, 5),
    multiple_of: int = 1,
) -> Shape:
    """Draw a shape `(batch, channels, *space)`.

    Args:
        draw: What hypothesis draws with.
        dims: The number of spatial axes; 0 to 3 by default.
        channels: The number of channels; 2 to 5 by default.
        batch: The smallest and the largest batch.
        space: The smallest and the largest size of a spatial axis, each multiplied with
            `multiple_of`.
        multiple_of: What the spatial sizes are multiples of, such as a stride.

    Examples:
        >>> from invtorch.testing import strategies
        >>> strategies.shapes(dims=2)
        shapes(dims=2)
    """
    axes = draw(st.integers(0, 3)) if dims is None else dims
    count = draw(st.integers(2, 5)) if channels is None else channels
    sizes = draw(st.lists(st.integers(*space), min_size=axes, max_size=axes))
    return (draw(st.integers(*batch)), count, *(multiple_of * n for n in sizes))


@st.composite
def states(
    draw: st.DrawFn,
    shape: st.SearchStrategy[Shape] | None = None,
    *,
    tensors: int = 1,
    dtype: torch.dtype = torch.float64,
    scales: Sequence[float] = (1.0,),
) -> Any:
    """Draw a state: a tensor of normal values, or a tuple of several of one shape.

    Args:
        draw: What hypothesis draws with.
        shape: Draws the shape; `shapes()` by default.
        tensors: The number of tensors; with 1 the state is no tuple.
        dtype: The dtype, floating or complex.
        scales: Factors of the values, one of which is drawn.

    Examples:
        >>> from invtorch.testing import strategies
        >>> strategies.states(tensors=2)
        states(tensors=2)
    """
    drawn = draw(shapes() if shape is None else shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([*scales]))

    def values() -> Tensor:
        return scale * torch.randn(drawn, generator=generator, dtype=dtype)

    return values() if tensors == 1 else tuple(values() for _ in range(tensors))


@st.composite
def contexts(
    draw: st.DrawFn, state: Any, *, channels: int = 1, most: int = 2
) -> tuple[Tensor, ...]:
    """Draw a context for a state: tensors with its batch and space.

    Args:
        draw: What hypothesis draws with.
        state: The state.
        channels: The number of channels of each tensor.
        most: The largest number of tensors.

    Examples:
        >>> from invtorch.testing import strategies
        >>> strategies.contexts(torch.zeros(2, 4), most=1)
        contexts(tensor([[0., 0., 0., 0.],
                [0., 0., 0., 0.]]), most=1)
    """
    like = state[0] if isinstance(state, tuple) else state
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (len(like), channels, *like.shape[2:])

    def values() -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=like.dtype)
        return tensor.to(like.device).requires_grad_(draw(st.booleans()))

    return tuple(values() for _ in range(draw(st.integers(0, most))))
