"""The parts of the memory of a training step, told apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invtorch._checks import check_function, check_module
from invtorch.memory.measure import bytes_of, measure_memory
from invtorch.memory.plan import amount


class MemoryReport(NamedTuple):
    """The parts of the memory of a training step, in bytes; `print` shows a table.

    Attributes:
        parameters: Parameters and buffers.
        gradients: Gradients of all parameters.
        optimizer: State of the optimizer, such as running means of gradients.
        activations: Peak of everything else during the forward and backward pass.
        cache: Memory that the caching allocator of a GPU reserves but does not use.
            `nvidia-smi` includes it. 0 on the CPU.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    cache: int

    def __str__(self) -> str:
        """Return the table."""
        rows = [f"{name:12}{amount(n):>12}" for name, n in self._asdict().items()]
        return "\n".join([*rows, f"{'in all':12}{amount(sum(self)):>12}"])


def memory_report(
    call: Callable[[], object],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> MemoryReport:
    """Report the memory of a training step, divided into its parts.

    A memory strategy only reduces activations. Parameters, gradients and the state of
    the optimizer grow with depth under every strategy, and the caching allocator of a
    GPU reserves freed memory. Of parameters that FSDP2 shards, those that this process
    keeps are counted.

    Args:
        call: The forward and backward pass, without the optimizer's step. It is called
            twice; the gradients are restored afterwards.
        model: The model whose parameters and buffers are counted.
        optimizer: The optimizer. If it has no state yet, a copy of it steps once.

    Raises:
        TypeError: If an argument is not what it must be.
        ValueError: If such a copy cannot step without a closure.

    Examples:
        >>> layer = nn.Linear(8, 8, bias=False)
        >>> x = torch.randn(4, 8)
        >>> report = memory_report(lambda: layer(x).sum().backward(), layer)
        >>> report.parameters, report.gradients, report.optimizer
        (256, 256, 0)
    """
    check_function("call", call)
    check_module("model", model)
    if not isinstance(optimizer, torch.optim.Optimizer | None):
        raise TypeError(
            f"optimizer is of type {type(optimizer).__name__}, but must be a "
            f"torch.optim.Optimizer, or None"
        )
    parameters = list(model.parameters())
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        call()
        gradients = bytes_of([p.grad for p in parameters if p.grad is not None])
        device = next((p.device for p in parameters), torch.device("cpu"))
        activations = measure_memory(call, device=device).peak
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient
    cuda = device.type == "cuda"
    reserved = torch.cuda.memory_reserved(device) if cuda else 0
    allocated = torch.cuda.memory_allocated(device) if cuda else 0
    return MemoryReport(
        bytes_of([*parameters, *model.buffers()]),
        gradients,
        bytes_of(_state_of(optimizer)),
        activations,
        max(reserved - allocated - activations, 0),
    )


def _state_of(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    if optimizer and not optimizer.state:
        optimizer = _stepped(optimizer)
    states = optimizer.state.values() if optimizer else ()
    return [v for state in states for v in state.values() if isinstance(v, Tensor)]


def _stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a copy of an optimizer that has stepped, on copies of its parameters."""
    copied = deepcopy(optimizer)
    for group in copied.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p) if p.requires_grad else None
    try:
        copied.step()
    except TypeError as error:
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__} without a state, which needs a "
            f"closure to step: call memory_report after its first step"
        ) from error
    return copied
