"""The weight of a module: a parameter, or weight-normalized."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from invtorch import _torch
from invtorch.closed_form.members import Members
from invtorch.closed_form.protocol import Gradients

Pull = Callable[[Tensor, Gradients], None]

# what `weight_norm` registers
ORIGINALS = Members.of(ParametrizationList, ("original0", "original1"), ("0",))
NORM = Members.of(_torch.WeightNorm)


class PlainWeight(NamedTuple):
    """A weight that is a parameter."""

    weight: Tensor

    def value(self) -> Tensor:
        """Return the weight."""
        return self.weight

    def with_pull_back(self) -> tuple[Tensor, Pull]:
        """Return the weight and a function that adds its gradient."""
        return self.weight, lambda grad, into: into.add(self.weight, grad)


class NormalizedWeight(NamedTuple):
    r"""A weight $w = g\,v / \lVert v \rVert$, with one norm per index of axis 0.

    References:
        Salimans and Kingma, *Weight normalization*, 2016. arXiv:1602.07868
    """

    g: Tensor
    v: Tensor

    def value(self) -> Tensor:
        """Return the weight."""
        return _torch.normalized_weight(self.v, self.g)

    def with_pull_back(self) -> tuple[Tensor, Pull]:
        """Return the weight and a function that adds the gradients of `g` and `v`."""
        g, v = self.g.contiguous(), self.v.contiguous()
        weight, norms = _torch.weight_norm_with_norms(v, g)

        def pull(grad: Tensor, into: Gradients) -> None:
            grad_v, grad_g = _torch.weight_norm_backward(grad.contiguous(), v, g, norms)
            into.add(self.v, grad_v)
            into.add(self.g, grad_g)

        return weight, pull


Weight = PlainWeight | NormalizedWeight


def weight_of(module: nn.Module) -> Weight | None:
    """Return the weight of a module, or `None` if it is parametrized in another way."""
    parametrized = _torch.submodules_of(module).get("parametrizations")
    if parametrized is None:
        weight = _torch.parameters_of(module).get("weight")
        return None if weight is None else PlainWeight(weight)
    lists = _torch.submodules_of(parametrized)
    parametrization = lists.get("weight")
    if type(parametrization) is not ParametrizationList or [*lists] != ["weight"]:
        return None
    if not ORIGINALS.fit(parametrization):
        return None
    (first,) = parametrization
    if type(first) is not _torch.WeightNorm or first.dim != 0 or not NORM.fit(first):
        return None
    g, v = map(_torch.parameters_of(parametrization).get, ("original0", "original1"))
    return None if g is None or v is None else NormalizedWeight(g, v)
