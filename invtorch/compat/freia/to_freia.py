"""An invertible module in a graph of FrEIA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invtorch import InvertibleModule
from invtorch.compat.freia.conventions import (
    Shape,
    check_shapes,
    shapes_of,
    shapes_without_batch,
)


class ToFreia(nn.Module):
    r"""Use an invertible module in FrEIA: in a `GraphINN`, or in a `SequenceINN`.

    ```python
    node = Node(previous, ToFreia, {"module": net})
    sequence.append(ToFreia, module=net)
    ```

    The state has one tensor for each shape of `dims_in`, and the context is the
    conditions. A whole `InvertibleSequential` as one node keeps its flat memory.
    With `jac=False` no log-determinant is computed, and NaN is returned for it.

    Args:
        dims_in: The shapes of the tensors of the state, without the batch.
        dims_c: The shapes of the conditions.
        module: The module. It is called once in `eval` mode, to learn the shapes of its
            output.

    Shape:
        Tuples of tensors, of the shapes of `dims_in` with a batch axis in front.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`, or if it is called with a
            tensor instead of a tuple.
        ValueError: If tensors or conditions have other shapes than it was made for.

    Examples:
        >>> from invtorch import PixelUnshuffle
        >>> from invtorch.compat.freia import ToFreia
        >>> node = ToFreia([(1, 4, 4)], module=PixelUnshuffle(2, dims=2))
        >>> node.output_dims([(1, 4, 4)])
        [(4, 2, 2)]
        >>> (z,), log_det = node([torch.randn(5, 1, 4, 4)])
        >>> log_det.shape
        torch.Size([5])
        >>> (x,), _ = node([z], rev=True)

    References:
        Ardizzone et al., *Framework for easily invertible architectures*, 2018.
    """

    def __init__(
        self,
        dims_in: Sequence[Any],
        dims_c: Sequence[Any] | None = None,
        module: InvertibleModule | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, InvertibleModule):
            raise TypeError(
                f"module is a {type(module).__name__}, but must be an InvertibleModule"
            )
        self.dims_in = shapes_of(dims_in)
        self.dims_c = shapes_of(dims_c or [])
        self.module = module
        self.dims_out = _output_shapes(module, self.dims_in, self.dims_c)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Return the tensors of the state, and the log-determinant of the direction."""
        state = self._given("x_or_z", x_or_z, self.dims_out if rev else self.dims_in)
        context = self._given("c", () if c is None else c, self.dims_c)
        one_or_more = state[0] if len(state) == 1 else state
        if jac:
            name = "inverse_and_log_det" if rev else "forward_and_log_det"
            result, log_det = getattr(self.module, name)(one_or_more, *context)
        else:
            call = self.module.inverse if rev else self.module
            result, log_det = call(one_or_more, *context), math.nan
        return result if isinstance(result, tuple) else (result,), log_det

    def output_dims(self, input_dims: Sequence[Any]) -> list[Shape]:
        """Return the shapes of the output."""
        given = shapes_of(input_dims)
        check_shapes(type(self).__name__, given, self.dims_in, "input_dims")
        return self.dims_out

    def _given(
        self, name: str, tensors: Sequence[Tensor], shapes: list[Shape]
    ) -> tuple[Tensor, ...]:
        if not isinstance(tensors, (tuple, list)):
            raise TypeError(
                f"{name} is a {type(tensors).__name__}, but must be a tuple or list of "
                f"tensors, as everywhere in FrEIA"
            )
        given = shapes_without_batch(tensors)
        label = f"ToFreia({type(self.module).__name__})"
        check_shapes(label, given, shapes, f"`{name}`")
        return tuple(tensors)


def _output_shapes(
    module: InvertibleModule, dims_in: list[Shape], dims_c: list[Shape]
) -> list[Shape]:
    """Return the shapes of the output, by a call that changes nothing."""
    first = next(module.parameters(), torch.empty(()))
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()  # nothing is initialized, counted or drawn
    try:
        with torch.no_grad():
            state, context = (
                [first.new_full((1, *shape), 0.5) for shape in shapes]
                for shapes in (dims_in, dims_c)
            )
            given = state[0] if len(state) == 1 else tuple(state)
            result = module(given, *context)
    finally:
        for inner, training in modes:
            inner.training = training
    return shapes_without_batch(result if isinstance(result, tuple) else (result,))
