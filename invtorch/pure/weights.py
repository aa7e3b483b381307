"""The weight of a module, as it is or normalized."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

from invtorch.pure.function import Gradients

aten = torch.ops.aten
Pull = Callable[[Tensor, Gradients], None]


class PlainWeight(NamedTuple):
    """A weight that is a parameter."""

    weight: Tensor

    def value(self) -> Tensor:
        """Return the weight."""
        return self.weight

    def with_pullback(self) -> tuple[Tensor, Pull]:
        """Return the weight, and what adds its gradient."""
        return self.weight, lambda grad, into: into.add(self.weight, grad)


class NormalizedWeight(NamedTuple):
    r"""A weight $w = g\,v / \lVert v \rVert$, one norm for each entry of axis 0.

    References:
        Salimans and Kingma, *Weight normalization*, 2016. arXiv:1602.07868
    """

    g: Tensor
    v: Tensor

    def value(self) -> Tensor:
        """Return the weight."""
        return torch._weight_norm(self.v, self.g, 0)

    def with_pullback(self) -> tuple[Tensor, Pull]:
        """Return the weight, and what adds the gradients of `g` and `v`."""
        g, v = self.g.contiguous(), self.v.contiguous()
        weight, norms = aten._weight_norm_interface(v, g, 0)

        def pull(grad: Tensor, into: Gradients) -> None:
            found = aten._weight_norm_interface_backward(
                grad.contiguous(), v, g, norms, 0
            )
            into.add(self.v, found[0])
            into.add(self.g, found[1])

        return weight, pull


Weight = PlainWeight | NormalizedWeight


def weight_of(module: nn.Module) -> Weight | None:
    """Return the weight of a module, or `None` if something else makes a part of it."""
    made = module._modules.get("parametrizations")
    if made is None:
        weight = module._parameters.get("weight")
        return None if weight is None else PlainWeight(weight)
    ways = made._modules.get("weight")
    if type(ways) is not ParametrizationList or [*made._modules] != ["weight"]:
        return None
    way, *others = ways
    g, v = map(ways._parameters.get, ("original0", "original1"))
    if type(way) is not _WeightNorm or way.dim != 0 or others or g is None or v is None:
        return None
    return NormalizedWeight(g, v)
