"""Layers with one learned scale and shift for each channel or entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import (
    check_axis,
    check_count,
    check_product,
    check_real_log_det,
)
from invtorch.linalg import precise_dtype
from invtorch.module import InvertibleModule
from invtorch.precision import no_autocast


class ScaleAndShift(InvertibleModule):
    r"""Base class of $y = e^{s} \odot x + t$ with parameters $s$ and $t$.

    Args:
        shape: The shape of $s$ and $t$: a number of channels, or several sizes.
        dim: The axis of the state that the first of these sizes belongs to.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than 1, or `dim` is 0.
    """

    def __init__(self, shape: int | Sequence[int], *, dim: int = 1) -> None:
        super().__init__()
        sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        if not sizes:
            raise ValueError("shape is (), but must have at least one size")
        for size in sizes:
            check_count("shape", size)
        check_axis(dim)
        self.log_scale = nn.Parameter(torch.zeros(sizes))
        self.shift = nn.Parameter(torch.zeros(sizes))
        self.dim = dim

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Scale and shift."""
        log_s, t = self._placed(x)
        return x * self._exp(log_s) + t

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Subtract the shift and divide by the scale."""
        log_s, t = self._placed(y)
        return (y - t) * self._exp(-log_s)

    def forward_and_log_det(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        r"""Return `y` and $n \sum s$, with $n$ entries of a sample for each of $s$."""
        y = self.forward(x)
        return y, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        r"""Return `x` and $-n \sum s$."""
        x = self.inverse(y)
        return x, -self._log_det(y)

    def extra_repr(self) -> str:
        """Show the shape of the parameters, and the axis."""
        shape = tuple(self.log_scale.shape)
        return f"{shape[0] if len(shape) == 1 else shape}, dim={self.dim}"

    def _placed(self, state: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return $s$ and $t$ with the axes and the dtype of a state."""
        shape = tuple(self.log_scale.shape)
        start = self.dim % state.ndim if -state.ndim < self.dim < state.ndim else 0
        if start == 0 or state.shape[start : start + len(shape)] != shape:
            raise ValueError(
                f"a state of shape {tuple(state.shape)} does not have sizes {shape} of "
                f"this {type(self).__name__} from dim {self.dim} on: give it such a "
                f"state, or another `dim`"
            )
        check_product(self, state, self.log_scale)
        last = (1,) * (state.ndim - start - len(shape))
        log_s, t = self.log_scale.view(*shape, *last), self.shift.view(*shape, *last)
        return log_s.to(state.dtype), t.to(state.dtype)

    def _exp(self, log_s: Tensor) -> Tensor:
        with no_autocast(log_s):
            return log_s.exp()

    def _log_det(self, state: Tensor) -> Tensor:
        check_real_log_det(self, state)
        times = state[:1].numel() // self.log_scale.numel()
        return (times * self.log_scale.to(state.dtype).sum()).expand(len(state))


class ElementwiseAffine(ScaleAndShift):
    r"""Scale and shift each channel, or each entry, by learned numbers.

    $$ y = e^{s} \odot x + t, \qquad x = e^{-s} \odot (y - t) $$

    $s$ and $t$ begin with 0, so the layer begins as the identity. The log-determinant
    is $n \sum s$, where $n$ is the number of entries of a sample that share one $s$.
    Both directions are element by element.

    Args:
        shape: The number of channels; or several sizes, of the axes of the state from
            `dim` on, for a number of its own for each entry.
        dim: The axis of the channels; -1 for sequences and vectors.

    Shape:
        Any tensor with these sizes from axis `dim` on; the output has the same shape.

    Raises:
        TypeError: If a size is not an integer, the state has integers, or it is real
            while the parameters are complex.
        ValueError: If a size is less than 1, or the state has other sizes.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> layer = ElementwiseAffine(4)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> torch.equal(layer(x), x)
        True
    """


class ActNorm(ScaleAndShift):
    r"""Scale and shift each channel such that the first batch is normalized (Glow).

    $$ y = e^{s} \odot x + t, \qquad s = -\ln \operatorname{std}(x), \qquad
       t = -\operatorname{mean}(x) / \operatorname{std}(x) $$

    After the first batch, $s$ and $t$ are ordinary parameters. Whether they are set is
    part of the state dict, so a network that was loaded is not initialized again.
    Before, the layer is the identity, also in evaluation mode. If
    `torch.distributed` is initialized, the statistics are those of the batches of all
    processes. Channels that are constant, or have one value, are shifted only.

    Args:
        channels: Number of channels.
        dim: The axis of the channels; -1 for sequences and vectors.

    Shape:
        Any tensor with `channels` entries along `dim`; the output has the same shape.

    Raises:
        TypeError: If `channels` is not an integer, the state has integers, or it is
            real while the parameters are complex.
        ValueError: If the state has other channels, or the first batch is empty or has
            NaN or Inf.
        RuntimeError: If the first call in training mode is one in the inverse
            direction.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> layer = ActNorm(4)
        >>> y = layer(3 * torch.randn(8, 4, 16, 16) + 1)
        >>> torch.allclose(y.std((0, 2, 3)), torch.ones(4), atol=1e-4)
        True

    References:
        Kingma and Dhariwal, *Glow: Generative flow with invertible 1x1 convolutions*,
        2018. arXiv:1807.03039
    """

    def __init__(self, channels: int, *, dim: int = 1) -> None:
        check_count("channels", channels)
        super().__init__(channels, dim=dim)

    def initialize(self, x: Tensor, *_: Any) -> None:
        """Set scale and shift from a batch.

        A container calls it with the first batch.

        Args:
            x: The batch.

        Raises:
            TypeError: If the state is complex, and the parameters are real.
            ValueError: If the state has other channels, is empty, or has NaN or Inf.
        """
        self._placed(x)
        if x.is_complex() and not self.shift.is_complex():
            raise TypeError(
                "ActNorm has real parameters, but got complex data to initialize from: "
                "write `layer.to(torch.complex64)`, as the mean is complex"
            )
        mean, deviation = _statistics(x.movedim(self.dim, 0).flatten(1))
        scale = torch.where(deviation > 0, 1 / deviation, 1)
        _assign(self.log_scale, scale.log())
        _assign(self.shift, -mean * scale)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the rows, over all processes.

    The deviation is 0 where a row is constant but for rounding, or has one value.

    Raises:
        ValueError: If there are no values, or some are not finite.
    """
    least = torch.promote_types(values.dtype, torch.float32)
    values = values.to(precise_dtype(values))  # squares of large numbers overflow
    count = _summed(values.new_full((1,), values.shape[1]).real).item()
    if count == 0:
        raise ValueError(
            "ActNorm got an empty batch to initialize from: give it one with samples"
        )
    mean = _summed(values.sum(1)) / count
    squares = (values - mean[:, None]).abs().square().sum(1)
    deviation = (_summed(squares) / max(count - 1, 1)).sqrt()
    if not deviation.isfinite().all():
        raise ValueError(
            "ActNorm got NaN or Inf to initialize from, which its parameters would "
            "keep: give it finite data"
        )
    rounding = 8 * torch.finfo(least).eps * mean.abs()
    return mean, torch.where(deviation > rounding, deviation, 0)


def _summed(tensor: Tensor) -> Tensor:
    """Return the sum over all processes."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def _assign(parameter: Tensor, value: Tensor) -> None:
    """Write a parameter, which `fully_shard` may have distributed."""
    value = value.to(parameter.dtype)
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            value = distribute_tensor(value, mesh, placements)
    parameter.copy_(value)
