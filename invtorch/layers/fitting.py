"""Does it fit? What layers ask of their conditioner and of their state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from invtorch.arguments import check_module

POINTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.PReLU),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Identity, nn.Dropout),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)


def check_conditioner(
    conditioner: nn.Module, inputs: int | None, outputs: int | None
) -> None:
    """Compare the channels that a conditioner declares with those it will see.

    Convolutions, whatever else has attributes `in_channels` and `out_channels`, and
    sequences of which the first or last module that changes channels is such a one, are
    checked when the layer is built; others when they are first called. More input
    channels than the state gives are left alone: they may be those of the context.

    Args:
        conditioner: The network.
        inputs: Channels that it is given, if known.
        outputs: Channels that it should return, if known.

    Raises:
        TypeError: If it is no `nn.Module`.
        ValueError: If a number of channels cannot be right.
    """
    check_module("conditioner", conditioner)
    name = type(conditioner).__name__
    takes = getattr(_end(conditioner, 0), "in_channels", None)
    returns = getattr(_end(conditioner, -1), "out_channels", None)
    if isinstance(takes, int) and inputs is not None and takes < inputs:
        raise ValueError(
            f"the conditioner {name} takes {takes} channels, but is given {inputs}: "
            f"build it for {inputs}"
        )
    if isinstance(returns, int) and outputs is not None and returns != outputs:
        raise ValueError(
            f"the conditioner {name} returns {returns} channels, but the other part "
            f"of the state has {outputs}: build it for {outputs}"
        )


def _end(network: nn.Module, place: int) -> nn.Module:
    """Return the first (0) or last (-1) module that may change the channels."""
    while isinstance(network, nn.Sequential):
        changing = [m for m in network if not isinstance(m, POINTWISE)]
        if not changing:
            break
        network = changing[place]
    return network


def in_its_precision(
    conditioner: nn.Module, x: Tensor, context: tuple[Any, ...]
) -> Any:
    """Evaluate a conditioner in the precision of its parameters, whatever the state's.

    Args:
        conditioner: The network.
        x: What the coupling gives it of the state.
        context: What rides along; it is handed on as it is.

    Returns:
        What the conditioner returns.

    Raises:
        ValueError: If a convolution would take the batch for channels.
    """
    _check_batched(conditioner, x)
    parameter = _parameter(conditioner)
    if parameter is None:
        return conditioner(x, *context)
    if parameter.dtype != x.dtype and parameter.is_complex() == x.is_complex():
        x = x.to(parameter.dtype)
    return conditioner(x, *context)


def _parameter(module: nn.Module) -> Tensor | None:
    """Return the first parameter, faster than `parameters()`."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    parts = module._modules.values()
    found = (_parameter(part) for part in parts if part is not None)
    return next((p for p in found if p is not None), None)


def _check_batched(conditioner: nn.Module, x: Tensor) -> None:
    """Refuse what a convolution would take for one sample without a batch."""
    first = _end(conditioner, 0)
    if isinstance(first, _ConvNd) and x.ndim != len(first.kernel_size) + 2:
        raise ValueError(
            f"the conditioner {type(conditioner).__name__} begins with a "
            f"{type(first).__name__}, but is given shape {tuple(x.shape)}: give it "
            f"(batch, channels, ...) with {len(first.kernel_size)} axes of space"
        )


def parts(state: Tensor, split: int | None, dim: int) -> tuple[Tensor, Tensor]:
    """Split a state in two along `dim`, at `split` or in halves.

    Raises:
        ValueError: If one of them would be empty.
    """
    if not -state.ndim <= dim < state.ndim:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} has no dim {dim} to be split "
            f"along: give it (batch, channels, ...)"
        )
    size = state.shape[dim]
    place = size // 2 if split is None else split
    if not 0 < place < size:
        raise ValueError(
            f"a state with {size} entries along dim {dim} cannot be split at "
            f"{place}: both parts need at least one"
        )
    first, second = state.tensor_split((place,), dim)
    return first, second


def check_returned(
    name: str, found: Tensor, wanted: tuple[int, ...], state: Tensor
) -> None:
    """Check shape and dtype of what a conditioner returned.

    Args:
        name: The class of the network.
        found: What it returned.
        wanted: The shape that it should have.
        state: A part of the state, whose dtype it will be given.

    Raises:
        ValueError: If the shape is another one.
        TypeError: If the state cannot hold such numbers.
    """
    if found.shape != wanted:
        raise ValueError(
            f"the conditioner {name} returned shape {tuple(found.shape)}, but the "
            f"other part of the state needs {wanted}"
        )
    if found.dtype != state.dtype and _order(found) > _order(state):
        raise TypeError(
            f"the conditioner {name} returned {found.dtype}, which a state in "
            f"{state.dtype} cannot hold: give the layer a floating state "
            f"(`x.float()`), or a complex one if the conditioner is complex"
        )


def _order(tensor: Tensor) -> int:
    """Order integers before real and complex numbers."""
    return 2 * tensor.is_complex() + tensor.is_floating_point()


def check_channels(state: Tensor, channels: int, layer: nn.Module) -> None:
    """Check that a state has its channels where a layer expects them.

    Raises:
        ValueError: If it does not.
        TypeError: If it is one of integers, which no matrix can mix.
    """
    if state.ndim < 2 or state.shape[1] != channels:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} does not have the {channels} "
            f"channels of this {type(layer).__name__} on its second axis"
        )
    if not _order(state):
        raise TypeError(
            f"a state in {state.dtype} cannot be mixed by {type(layer).__name__}: give "
            f"it a floating one (`x.float()`)"
        )
