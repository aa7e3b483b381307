"""What constructors and layers check of their arguments, conditioners and states."""

from __future__ import annotations

from inspect import signature
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from invtorch import _torch

ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.PReLU),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Identity, nn.Dropout),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)


def check_count(name: str, value: object, least: int = 1) -> None:
    """Check a whole number.

    Args:
        name: What the argument is called.
        value: What was given.
        least: The smallest number it can be.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is too small.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}, but must be a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {value}, but must be at least {least}")


def check_number(name: str, value: object) -> None:
    """Check a real number.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, but must be a number")


def check_generator(generator: object) -> None:
    """Check a source of random numbers, if there is one.

    Raises:
        TypeError: If it is none.
    """
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(
            f"generator is {generator!r}, but must be a torch.Generator: write "
            f"`torch.Generator().manual_seed(0)`"
        )


def check_axis(dim: object, name: str = "dim") -> None:
    """Check that an axis is a whole number that is not the axis of the batch.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is 0.
    """
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"{name} is {dim!r}, but must be a whole number")
    if dim == 0:
        raise ValueError(
            f"{name} is 0, the axis of the batch, but samples must not depend on each "
            f"other: use 1 for channels or -1 for the last axis"
        )


def check_function(name: str, value: object) -> None:
    """Check a function, or a module, which is called as one.

    Raises:
        TypeError: If it is neither.
    """
    if not callable(value):
        raise TypeError(f"{name} is {value!r}, but must be a function or a module")


def check_module(name: str, value: object) -> None:
    """Check a network.

    Raises:
        TypeError: If it is no `nn.Module`.
    """
    if isinstance(value, nn.Module):
        check_initialized(value)
    else:
        raise TypeError(
            f"{name} is of type {type(value).__name__}, but must be an nn.Module: wrap "
            f"it in one, so that its parameters are found"
        )


def check_initialized(module: nn.Module) -> None:
    """Refuse a module whose constructor did not call that of `nn.Module`.

    Raises:
        RuntimeError: If it did not.
    """
    scripted = isinstance(module, torch.jit.ScriptModule)  # has no tables of its own
    if "_modules" not in vars(module) and not scripted:
        name = type(module).__name__
        raise RuntimeError(
            f"{name} is not initialized: call `super().__init__()` first in the "
            f"`__init__` of {name}"
        )


def check_conditioner(
    conditioner: nn.Module,
    inputs: int | None,
    outputs: int | None,
    name: str = "conditioner",
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
        name: What the argument is called.

    Raises:
        TypeError: If it is no `nn.Module`.
        ValueError: If a number of channels cannot be right.
    """
    check_module(name, conditioner)
    kind = type(conditioner).__name__
    takes = getattr(_end(conditioner, 0), "in_channels", None)
    returns = getattr(_end(conditioner, -1), "out_channels", None)
    if isinstance(takes, int) and inputs is not None and takes < inputs:
        raise ValueError(
            f"the {name} {kind} takes {takes} channels, but is given {inputs}: "
            f"build it for {inputs}"
        )
    if isinstance(returns, int) and outputs is not None and returns != outputs:
        raise ValueError(
            f"the {name} {kind} returns {returns} channels, but the other part of the "
            f"state needs {outputs}: build it for {outputs}"
        )


def _end(network: nn.Module, place: int) -> nn.Module:
    """Return the first (0) or last (-1) module that may change the channels."""
    while isinstance(network, nn.Sequential):
        changing = [m for m in network if not isinstance(m, ACTIVATIONS)]
        if not changing:
            break
        network = changing[place]
    return network


def check_batched(conditioner: nn.Module, x: Tensor) -> None:
    """Refuse what a convolution would take for one sample without a batch."""
    first = _end(conditioner, 0)
    if isinstance(first, _torch.Convolution) and x.ndim != len(first.kernel_size) + 2:
        raise ValueError(
            f"the conditioner {type(conditioner).__name__} begins with a "
            f"{type(first).__name__}, but is given shape {tuple(x.shape)}: give it "
            f"(batch, channels, ...) with {len(first.kernel_size)} axes of space"
        )


def check_takes(
    conditioner: nn.Module, context: tuple[Any, ...], error: TypeError
) -> None:
    """Say of an error if it is that a conditioner does not take the context.

    Raises:
        TypeError: If it is.
    """
    if not context:
        return
    try:
        signature(conditioner.forward).bind(None, *context)
    except TypeError:
        raise TypeError(
            f"the conditioner {type(conditioner).__name__} does not take the context, "
            f"{len(context)} argument(s) besides x: accept it in its `forward`, or use "
            f"WithoutContext(layer)"
        ) from error


def check_tensor(kind: str, returned: object, name: str = "conditioner") -> None:
    """Check that a network, or a function, returned one tensor.

    Args:
        kind: Its class or name.
        returned: What it returned.
        name: What the argument is called.

    Raises:
        TypeError: If it did not.
    """
    if not isinstance(returned, Tensor):
        raise TypeError(
            f"the {name} {kind} returned a {type(returned).__name__}, but must return "
            f"one tensor"
        )


def holds(condition: Tensor) -> bool:
    """Return whether a condition holds; on the device "meta", which has no values, yes.

    On others it synchronizes with the device. Under `torch.func.vmap` it has to hold
    for all samples.
    """
    return condition.is_meta or bool(_torch.unwrapped(condition).all())


def check_returned(
    kind: str,
    returned: Tensor,
    shape: tuple[int, ...],
    state: Tensor,
    name: str = "conditioner",
) -> None:
    """Check shape and dtype of what a conditioner returned.

    Args:
        kind: The class of the network.
        returned: What it returned.
        shape: The shape that it should have.
        state: A part of the state, whose dtype it will be given.
        name: What the argument is called.

    Raises:
        ValueError: If the shape is another one.
        TypeError: If it is no tensor, or the state cannot hold such numbers.
    """
    check_tensor(kind, returned, name)
    if returned.shape != shape:
        raise ValueError(
            f"the {name} {kind} returned shape {tuple(returned.shape)}, but the "
            f"other part of the state needs {shape}"
        )
    check_can_hold(kind, returned, state, name)


def check_can_hold(kind: str, returned: Tensor, state: Tensor, name: str) -> None:
    """Check that a state can hold what a network, or a function, returned.

    Args:
        kind: Its class or name.
        returned: What it returned.
        state: A part of the state, whose dtype it will be given.
        name: What the argument is called.

    Raises:
        TypeError: If it cannot.
    """
    if returned.dtype != state.dtype and _order(returned) > _order(state):
        raise TypeError(
            f"the {name} {kind} returned {returned.dtype}, which a state in "
            f"{state.dtype} cannot hold: use a floating (`x.float()`) or complex state"
        )


def check_product(layer: nn.Module, state: Tensor, parameter: Tensor) -> None:
    """Check that a state can hold products with parameters of a layer.

    Raises:
        TypeError: If it has integers, or real numbers for complex parameters.
    """
    if _order(parameter) > _order(state):
        raise TypeError(
            f"a state in {state.dtype} cannot hold what {type(layer).__name__} "
            f"computes with {parameter.dtype}: use a floating (`x.float()`) or complex "
            f"state"
        )


def check_real(layer: nn.Module, state: Tensor) -> None:
    """Refuse a state that is not real, for a function of real numbers.

    Raises:
        TypeError: If it has integers or complex numbers.
    """
    if not state.is_floating_point():
        raise TypeError(
            f"a state in {state.dtype} is none of real numbers, which "
            f"{type(layer).__name__} is a function of: give it a floating one "
            f"(`x.float()`)"
        )


def _order(tensor: Tensor) -> int:
    """Order integers before real and complex numbers."""
    return 2 * tensor.is_complex() + tensor.is_floating_point()


def check_channels(
    state: Tensor, channels: int, layer: nn.Module, dim: int = 1
) -> None:
    """Check that a state has its channels where a layer expects them.

    Raises:
        ValueError: If it does not.
        TypeError: If it is one of integers, which no matrix can mix.
    """
    if not -state.ndim < dim < state.ndim or state.shape[dim] != channels:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} does not have the {channels} "
            f"channels of this {type(layer).__name__} along dim {dim}: give it such a "
            f"state, or another `dim`"
        )
    if not _order(state):
        raise TypeError(
            f"a state in {state.dtype} cannot be mixed by {type(layer).__name__}: give "
            f"it a floating one (`x.float()`)"
        )


def check_real_log_det(layer: nn.Module, values: Tensor) -> None:
    """Refuse the log-determinant of a complex state, or of one without samples.

    Raises:
        NotImplementedError: If the values are complex.
        ValueError: If they are a single number.
    """
    if not values.ndim:
        raise ValueError(
            f"{type(layer).__name__} got a state without axes: give it (batch, ...), "
            f"as there is a log-determinant for each sample"
        )
    if values.is_complex():
        raise NotImplementedError(
            f"{type(layer).__name__} has no log-determinant of a complex state: give "
            f"it the real and imaginary parts as channels (`torch.view_as_real`)"
        )


def check_log_det(name: str, log_det: object, state: object) -> None:
    """Refuse a log-determinant that is not one real number for each sample.

    Args:
        name: The class that returned it.
        log_det: What it returned.
        state: The state that it returned, one tensor or a tuple.

    Raises:
        TypeError: If it is not a tensor.
        RuntimeError: If it has another shape, or is complex.
    """
    first = state[0] if isinstance(state, tuple) else state
    batch = len(first)  # type: ignore[arg-type]
    if not isinstance(log_det, Tensor):
        raise TypeError(
            f"{name} returned a log-determinant that is a {type(log_det).__name__}: "
            f"return a tensor of shape (batch,)"
        )
    if log_det.shape != (batch,) or log_det.is_complex():
        raise RuntimeError(
            f"{name} returned a log-determinant of shape {tuple(log_det.shape)} in "
            f"{log_det.dtype} for a batch of {batch}: return one real number for each "
            f"sample, ({batch},)"
        )


def check_bound(bound: float) -> float:
    """Return a bound of scales or slopes.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not larger than 1.
    """
    check_number("bound", bound)
    if not bound > 1:
        raise ValueError(f"bound is {bound}, but must be larger than 1")
    return bound
