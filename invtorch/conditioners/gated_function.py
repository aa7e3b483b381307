"""The gated residual block as a pure function, its derivative written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from invtorch.conditioners.patches import (
    cropped,
    from_patches,
    gather,
    padded,
    spread,
    to_patches,
)
from invtorch.functional import correlate_channels, mix_channels
from invtorch.pure import Gradients, Pullback, PureFunction
from invtorch.pure.weights import Weight

aten = torch.ops.aten


class GatedFunction(NamedTuple):
    """What `GatedResidualBlock` computes, operation by operation.

    Attributes:
        first: The weight $W_1$ of the patches.
        first_bias: Its bias.
        look: The convolution with $W_2$ on the coarse grid.
        third: The weight $W_3$ of the patches that come out.
        stride: Size of a patch along each axis.
    """

    first: Weight
    first_bias: Tensor
    look: PureFunction
    third: Weight
    stride: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the gated output."""
        patches, space = to_patches(padded(x, self.stride), self.stride), x.shape[2:]
        del x
        h = gather(self.first.value(), self.first_bias, patches).relu_()
        del patches
        h = self.look(h).relu_()
        return self._gated(spread(self.third.value(), h), space)

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """Return the gated output and its derivative."""
        W1, pull_first = self.first.with_pullback()
        W3, pull_third = self.third.with_pullback()
        patches, space = to_patches(padded(x, self.stride), self.stride), x.shape[2:]
        del x
        h1 = gather(W1, self.first_bias, patches).relu_()
        h2, pull_look = self.look.with_pullback(h1)
        h2.relu_()
        out = spread(W3, h2)
        kept = [W1, patches, h1, h2, W3, out]

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            grad = to_patches(padded(grad, self.stride), self.stride)
            grad = aten.glu_backward(grad, kept.pop(), 1)
            W3, h2 = kept.pop(), kept[-1]
            of_W3 = correlate_channels(h2, grad) if into.wants(*self.third) else None
            grad = mix_channels(W3.flatten(1), grad)
            shape = W3.shape
            del W3, h2
            if of_W3 is not None:
                pull_third(of_W3.view(shape), into)
            grad = aten.threshold_backward(grad, kept.pop(), 0)
            grad = pull_look(grad, into)
            grad = aten.threshold_backward(grad, kept.pop(), 0)
            into.add(self.first_bias, grad.sum((0, *range(2, grad.ndim))))
            W1 = kept[0]
            if into.wants(*self.first):
                pull_first(correlate_channels(grad, kept.pop()).view_as(W1), into)
            grad = mix_channels(W1.flatten(1).mT, grad)
            return cropped(from_patches(grad, self.stride), space)

        return self._gated(out, space), pull

    def _gated(self, out: Tensor, space: Sequence[int]) -> Tensor:
        return cropped(from_patches(F.glu(out, dim=1), self.stride), space)
