"""The gated residual block in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from invtorch import _torch
from invtorch.closed_form.members import Members
from invtorch.closed_form.protocol import Function, Gradients, PullBack
from invtorch.closed_form.registry import closed_form, register
from invtorch.closed_form.weights import Weight, weight_of
from invtorch.conditioners import GatedResidualBlock
from invtorch.conditioners.patches import (
    CONVOLUTIONS,
    GatherPatches,
    SpreadPatches,
    cropped,
    from_patches,
    gather,
    padded,
    spread,
    to_patches,
)
from invtorch.linalg import correlate_channels, mix_channels

aten = torch.ops.aten

GATHER = Members.of(GatherPatches, ("weight", "bias"))
SPREAD = Members.of(SpreadPatches, ("weight", "bias"))


class GatedBlock(NamedTuple):
    """The operations of `GatedResidualBlock`.

    Attributes:
        first: The weight $W_1$, applied to the input patches.
        first_bias: The bias added after $W_1$.
        look: The convolution with $W_2$ on the coarse grid.
        third: The weight $W_3$, which computes the output patches.
        stride: Size of a patch along each axis.
    """

    first: Weight
    first_bias: Tensor
    look: Function
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

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Return the gated output and its derivative."""
        W1, pull_first = self.first.with_pull_back()
        W3, pull_third = self.third.with_pull_back()
        patches, space = to_patches(padded(x, self.stride), self.stride), x.shape[2:]
        del x
        h1 = gather(W1, self.first_bias, patches).relu_()
        h2, pull_look = self.look.with_pull_back(h1)
        h2.relu_()
        out = spread(W3, h2)
        saved = [W1, patches, h1, h2, W3, out]

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            grad = to_patches(padded(grad, self.stride), self.stride)
            grad = aten.glu_backward(grad, saved.pop(), 1)
            W3, h2 = saved.pop(), saved[-1]
            grad_W3 = correlate_channels(h2, grad) if into.needs(*self.third) else None
            grad = mix_channels(W3.flatten(1), grad)
            shape = W3.shape
            del W3, h2
            if grad_W3 is not None:
                pull_third(grad_W3.view(shape), into)
            grad = aten.threshold_backward(grad, saved.pop(), 0)
            grad = pull_look(grad, into)
            grad = aten.threshold_backward(grad, saved.pop(), 0)
            into.add(self.first_bias, grad.sum((0, *range(2, grad.ndim))))
            W1 = saved[0]
            if into.needs(*self.first):
                pull_first(correlate_channels(grad, saved.pop()).view_as(W1), into)
            grad = mix_channels(W1.flatten(1).mT, grad)
            return cropped(from_patches(grad, self.stride), space)

        return self._gated(out, space), pull

    def _gated(self, out: Tensor, space: Sequence[int]) -> Tensor:
        return cropped(from_patches(F.glu(out, dim=1), self.stride), space)


@register(GatedResidualBlock, submodules=("gather", "look", "spread"))
def gated_block(block: GatedResidualBlock, state: Tensor) -> GatedBlock | None:
    """Return the closed form of a block, if its submodules have not been replaced."""
    parts = block.gather, block.look, block.spread
    kinds = GatherPatches, CONVOLUTIONS.get(block.dims), SpreadPatches
    if is_parametrized(block) or (*map(type_before_parametrizations, parts),) != kinds:
        return None
    if not GATHER.fit(block.gather) or not SPREAD.fit(block.spread):
        return None
    look = closed_form(block.look, state)
    bias = _torch.parameters_of(block.gather).get("bias")
    first, third = weight_of(block.gather), weight_of(block.spread)
    if look is None or bias is None or first is None or third is None:
        return None
    if not block.stride == block.gather.patch == block.spread.patch:
        return None
    return GatedBlock(first, bias, look, third, block.stride)
