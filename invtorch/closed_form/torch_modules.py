"""PyTorch's convolutions, linear maps, activations, `nn.Sequential` in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invtorch import _torch
from invtorch.closed_form.protocol import Function, Gradients, PullBack
from invtorch.closed_form.registry import closed_form, register
from invtorch.closed_form.weights import Weight, weight_of

aten = torch.ops.aten


class Convolution(NamedTuple):
    """A convolution with any number of spatial axes and zero padding."""

    weight: Weight
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return the convolution."""
        return self._convolved(x, self.weight.value())

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Return the convolution and its derivative."""
        weight, pull_weight = self.weight.with_pull_back()
        bias, saved = self.bias, [x, weight]

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            weight, x = saved.pop(), saved.pop()
            grads: tuple[Tensor, Tensor | None, Tensor | None]
            grads = aten.convolution_backward(
                *(grad, x, weight, [weight.shape[0]] if bias is not None else None),
                *self._options,
                [True, into.needs(*self.weight), bias is not None and into.needs(bias)],
            )
            del grad, x, weight
            grad_x, grad_weight, grad_bias = grads
            if grad_weight is not None:
                pull_weight(grad_weight, into)
            if bias is not None and grad_bias is not None:
                into.add(bias, grad_bias)
            return grad_x

        return self._convolved(x, weight), pull

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.convolution(x, weight, self.bias, *self._options)

    @property
    def _options(self) -> tuple[Any, ...]:
        zeros = [0] * len(self.stride)  # the output padding of a transposed convolution
        return self.stride, self.padding, self.dilation, False, zeros, self.groups


@register(nn.Conv1d, nn.Conv2d, nn.Conv3d, parameters=("weight", "bias"))
def convolution(module: Any, state: Tensor) -> Convolution | None:
    """Return the closed form of a convolution."""
    weight, bias = weight_of(module), _torch.parameters_of(module).get("bias")
    options = module.stride, module.padding, module.dilation
    if (
        weight is None
        or module.padding_mode != "zeros"
        or any(type(option) is not tuple for option in options)
        or state.ndim != len(module.stride) + 2
    ):
        return None
    return Convolution(weight, bias, *options, module.groups)


class Linear(NamedTuple):
    """An affine map of the last axis."""

    weight: Weight
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the result."""
        return F.linear(x, self.weight.value(), self.bias)

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Return the result and its derivative."""
        weight, pull_weight = self.weight.with_pull_back()

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            rows = grad.reshape(-1, grad.shape[-1])
            if into.needs(*self.weight):
                pull_weight(rows.mT @ x.reshape(-1, x.shape[-1]), into)
            if self.bias is not None:
                into.add(self.bias, rows.sum(0))
            return grad @ weight

        return F.linear(x, weight, self.bias), pull


@register(nn.Linear, parameters=("weight", "bias"))
def linear(module: nn.Linear, state: Tensor) -> Linear | None:
    """Return the closed form of a linear layer."""
    del state
    weight, bias = weight_of(module), _torch.parameters_of(module).get("bias")
    if weight is None or (bias is not None and bias.ndim != 1):
        return None
    return Linear(weight, bias)


class Pointwise(NamedTuple):
    """An elementwise function.

    Attributes:
        function: The function.
        derivative: Computes the gradient of the input from the gradient of the output
            and either the output or the input.
        of_output: Whether `derivative` takes the output instead of the input.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    of_output: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Apply the function, and return the derivative too."""
        y = self.function(x)
        saved = y if self.of_output else x
        return y, lambda grad, _: self.derivative(grad, saved)


RELU = Pointwise(torch.relu, lambda grad, y: aten.threshold_backward(grad, y, 0), True)
TANH = Pointwise(torch.tanh, aten.tanh_backward, True)
SIGMOID = Pointwise(torch.sigmoid, aten.sigmoid_backward, True)
SILU = Pointwise(F.silu, aten.silu_backward, False)
GELU = Pointwise(F.gelu, aten.gelu_backward, False)
ACTIVATIONS: dict[type[nn.Module], Pointwise] = {
    nn.ReLU: RELU,
    nn.Tanh: TANH,
    nn.Sigmoid: SIGMOID,
    nn.SiLU: SILU,
    nn.GELU: GELU,
}


@register(*ACTIVATIONS)
def pointwise(module: Any, state: Tensor) -> Pointwise | None:
    """Return the closed form of an activation, unless it changes its input in place."""
    del state
    exact = getattr(module, "approximate", "none") == "none"
    inplace = getattr(module, "inplace", False)
    return ACTIVATIONS.get(type(module)) if exact and not inplace else None


class Chain(NamedTuple):
    """Functions applied one after another."""

    parts: tuple[Function, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the functions from first to last."""
        for part in self.parts:
            x = part(x)
        return x

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Apply the functions, and return the derivative of the result too."""
        pulls: list[PullBack] = []
        for part in self.parts:
            x, pull_part = part.with_pull_back(x)
            pulls.append(pull_part)

        def pull(grad: Tensor, into: Gradients) -> Tensor:
            while pulls:
                grad = pulls.pop()(grad, into)
            return grad

        return x, pull


@register(nn.Sequential, submodules=None)
def chain(module: nn.Sequential, state: Tensor) -> Chain | None:
    """Return the closed form of `nn.Sequential`, if all its modules have one."""
    parts = tuple([closed_form(part, state) for part in module])
    return None if None in parts else Chain(parts)
