"""Count the bytes that a call allocates and frees."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

from invtorch import _torch

T = TypeVar("T")
BETWEEN = "invtorch: the second call"
LOG_LEVEL = "KINETO_LOG_LEVEL"


class Memory(NamedTuple):
    """What a call allocated, in bytes, above what was allocated before it.

    Attributes:
        peak: The most that was held at any time.
        live: What was still held when it returned, its result included.
    """

    peak: int
    live: int


def measure_memory(
    call: Callable[[], object], *, device: torch.device | str | None = None
) -> Memory:
    """Count the bytes that a call allocates and frees.

    On the CPU the allocations are those of PyTorch's profiler, exact to the byte; on a
    GPU those of its caching allocator. Memory that the process merely reserves (what
    `nvidia-smi` shows) is not counted.

    Args:
        call: What to measure. Its result is held until the count is taken.
        device: Where the memory is that counts: `"cpu"`, or a CUDA device; without it,
            PyTorch's default device.

    Returns:
        The peak during the call and what was live at its end.

    Raises:
        ValueError: If `device` is neither the CPU nor a CUDA device.
        RuntimeError: If it is the CPU, and a profiler runs already.

    Examples:
        >>> measure_memory(lambda: torch.zeros(256, dtype=torch.float32))
        Memory(peak=1024, live=1024)
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device is {str(device)!r}, but memory can be counted on 'cpu' or 'cuda'"
        )
    gc.collect()  # what is already dead must not be freed in between
    if device.type == "cuda":
        return _measure_cuda(call, device)
    with _profiled() as record:
        result = call()
    del result
    return _counted(_torch.recorded_allocations(record, BETWEEN))


def measure_two(
    first: Callable[[], T], second: Callable[[T], object], device: torch.device
) -> tuple[Memory, Memory]:
    """Count two calls, the second one above what the first one left.

    The second is given the result of the first. To count both at once is to know the
    size of what the second one frees.
    """
    with _uncollected():
        if device.type == "cuda":
            results: list[T] = []
            before = _measure_cuda(lambda: results.append(first()), device)
            return before, _measure_cuda(lambda: second(results.pop()), device)
        with _profiled() as record:
            result = first()
            with record_function(BETWEEN):
                second(result)
    changes = list(_torch.recorded_allocations(record, BETWEEN))
    place = next(i for i, change in enumerate(changes) if change is None)
    return _counted(changes[:place]), _counted(changes[place + 1 :])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from freeing what was allocated before.

    To collect first would do, too, but takes longer than to measure a layer.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _profiled() -> Iterator[profile]:
    """Profile the memory of what is called inside.

    Raises:
        RuntimeError: If a profiler is running.
    """
    if _torch.is_profiling():
        raise RuntimeError(
            "memory is counted by PyTorch's profiler, which does not nest: end the "
            'other one, or with memory="auto", call it before on an input of this shape'
        )
    record = profile(profile_memory=True)
    with ExitStack() as stack:
        with _quiet():
            stack.enter_context(record)
        yield record


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler from logging that it starts and stops.

    Kineto reads its log level once, when a profiler first starts. A level that the user
    set is left alone, and none is left behind.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "99"
    try:
        yield
    finally:
        os.environ.pop(LOG_LEVEL, None)


def _counted(changes: Iterable[int | None]) -> Memory:
    sizes = list(accumulate((change or 0 for change in changes), initial=0))
    return Memory(max(sizes), sizes[-1])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors together."""
    return sum(t.nbytes for t in tensors)


def _measure_cuda(call: Callable[[], object], device: torch.device) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    live = torch.cuda.memory_allocated(device)
    del result
    return Memory(peak - before, live - before)
