"""The gated residual block as a pure function, its derivative written by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

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
from invtorch.pure import Gradients, Pullback
from invtorch.pure.weights import Weight

aten = torch.ops.aten
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class GatedFunction(NamedTuple):
    """What `GatedResidualBlock` computes, operation by operation.

    Attributes:
        first: The weight $W_1$ of the patches.
        first_bias: Its bias.
        second: The weight $W_2$ of the convolution on the coarse grid.
        second_bias: Its bias.
        third: The weight $W_3$ of the patches that come out.
        stride: Size of a patch along each axis.
        around: What the convolution on the coarse grid is padded by, along each axis.
    """

    first: Weight
    first_bias: Tensor
    second: Weight
    second_bias: Tensor
    third: Weight
    stride: tuple[int, ...]
    around: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the gated output."""
        patches = to_patches(padded(x, self.stride), self.stride)
        h = gather(self.first.value(), self.first_bias, patches).relu_()
        h = self._look(h, self.second.value()).relu_()
        return self._gated(spread(self.third.value(), h), x)

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """Return the gated output and its derivative."""
        W1, pull_first = self.first.with_pullback()
        W2, pull_second = self.second.with_pullback()
        W3, pull_third = self.third.with_pullback()
        patches = to_patches(padded(x, self.stride), self.stride)
        h1 = gather(W1, self.first_bias, patches).relu_()
        h2 = self._look(h1, W2).relu_()
        out = spread(W3, h2)
        space, kept = x.shape[2:], [patches, h1, h2, out]

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            out, h2, h1, patches = (kept.pop() for _ in range(4))
            grad = to_patches(padded(grad, self.stride), self.stride)
            grad = aten.glu_backward(grad, out, 1)
            del out
            pull_third(correlate_channels(h2, grad).view_as(W3), into)
            grad = mix_channels(W3.flatten(1), grad)
            grad = aten.threshold_backward(grad, h2, 0)
            del h2
            grad, of_W2, of_bias = self._look_back(grad, h1, W2)
            pull_second(of_W2, into)
            into.add(self.second_bias, of_bias)
            grad = aten.threshold_backward(grad, h1, 0)
            del h1
            into.add(self.first_bias, grad.flatten(2).sum((0, 2)))
            pull_first(correlate_channels(grad, patches).view_as(W1), into)
            grad = mix_channels(W1.flatten(1).mT, grad)
            return cropped(from_patches(grad, self.stride), space)

        return self._gated(out, x), pull

    def _look(self, h: Tensor, weight: Tensor) -> Tensor:
        convolve = CONVOLVE[len(self.stride)]
        found: Tensor = convolve(h, weight, self.second_bias, padding=self.around)
        return found

    def _look_back(self, grad: Tensor, h: Tensor, weight: Tensor) -> Any:
        ones, zeros = [1] * len(self.stride), [0] * len(self.stride)
        return aten.convolution_backward(
            *(grad, h, weight, [len(weight)], ones, self.around, ones),
            *(False, zeros, 1, [True, True, True]),
        )

    def _gated(self, out: Tensor, x: Tensor) -> Tensor:
        fine = from_patches(F.glu(out, dim=1), self.stride)
        return cropped(fine, x.shape[2:])
