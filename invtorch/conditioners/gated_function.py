"""The gated residual block as a pure function, its derivative written by hand."""

from __future__ import annotations

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
        patches = to_patches(padded(x, self.stride), self.stride)
        h = gather(self.first.value(), self.first_bias, patches).relu_()
        h = self.look(h).relu_()
        return self._gated(spread(self.third.value(), h), x)

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """Return the gated output and its derivative."""
        W1, pull_first = self.first.with_pullback()
        W3, pull_third = self.third.with_pullback()
        patches = to_patches(padded(x, self.stride), self.stride)
        h1 = gather(W1, self.first_bias, patches).relu_()
        h2, pull_look = self.look.with_pullback(h1)
        h2.relu_()
        out = spread(W3, h2)
        space, kept = x.shape[2:], [patches, h1, h2, out]

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            out, h2, h1, patches = (kept.pop() for _ in range(4))
            grad = to_patches(padded(grad, self.stride), self.stride)
            grad = aten.glu_backward(grad, out, 1)
            del out
            if into.wants(*self.third):
                pull_third(correlate_channels(h2, grad).view_as(W3), into)
            grad = mix_channels(W3.flatten(1), grad)
            grad = aten.threshold_backward(grad, h2, 0)
            del h2
            grad = pull_look(grad, into)
            grad = aten.threshold_backward(grad, h1, 0)
            del h1
            into.add(self.first_bias, grad.sum((0, *range(2, grad.ndim))))
            if into.wants(*self.first):
                pull_first(correlate_channels(grad, patches).view_as(W1), into)
            grad = mix_channels(W1.flatten(1).mT, grad)
            return cropped(from_patches(grad, self.stride), space)

        return self._gated(out, x), pull

    def _gated(self, out: Tensor, x: Tensor) -> Tensor:
        fine = from_patches(F.glu(out, dim=1), self.stride)
        return cropped(fine, x.shape[2:])
