"""Measure the memory that a call allocates: its peak, and what it leaves."""

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
    """The bytes that a call allocates, above those allocated before it.

    Attributes:
        peak: The largest number allocated at any time of the call.
        live: The number still allocated when it returns, including its result.
    """

    peak: int
    live: int


def measure_memory(
    call: Callable[[], object], *, device: torch.device | str | None = None
) -> Memory:
    """Count the bytes that a call allocates and frees.

    On the CPU the allocations are those that PyTorch's profiler records, exact to the
    byte. On a GPU they are those of the caching allocator. Memory that the allocator
    only reserves (which `nvidia-smi` includes) is not counted.

    Args:
        call: The function to measure. Its result is kept until the end of the
            measurement.
        device: The device whose memory is counted: `"cpu"` or a CUDA device. The
            default is PyTorch's default device.

    Returns:
        The peak of the call, and what is still allocated at its end.

    Raises:
        ValueError: If `device` is neither the CPU nor a CUDA device.
        RuntimeError: If it is the CPU and a profiler is already running.

    Examples:
        >>> measure_memory(lambda: torch.zeros(256, dtype=torch.float32))
        Memory(peak=1024, live=1024)
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device is {str(device)!r}, but memory can be counted on 'cpu' or 'cuda'"
        )
    gc.collect()  # garbage must not be freed during the call
    if device.type == "cuda":
        return _measure_cuda(call, device)
    with _profiled() as record:
        result = call()
    del result
    return _memory_of(_torch.recorded_allocations(record, BETWEEN))


def measure_two(
    first: Callable[[], T], second: Callable[[T], object], device: torch.device
) -> tuple[Memory, Memory]:
    """Count two calls, the second one above what the first one leaves.

    The second call receives the result of the first. One profile records both, so that
    it knows the sizes of the allocations that the second call frees.
    """
    with _collection_disabled():
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
    return _memory_of(changes[:place]), _memory_of(changes[place + 1 :])


@contextmanager
def _collection_disabled() -> Iterator[None]:
    """Disable the garbage collector, so that nothing allocated before is freed.

    `gc.collect()` beforehand has the same effect, but takes longer than the measurement
    of a layer.
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
    """Profile the memory of the calls in this context.

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
        with _logging_disabled():
            stack.enter_context(record)
        yield record


@contextmanager
def _logging_disabled() -> Iterator[None]:
    """Prevent the profiler from logging that it starts and stops.

    Kineto, the library behind the profiler, reads its log level once, when a profiler
    first starts. A level that the user has set is not changed; otherwise the variable
    is removed at the end.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "99"  # above all levels of messages
    try:
        yield
    finally:
        os.environ.pop(LOG_LEVEL, None)


def _memory_of(changes: Iterable[int | None]) -> Memory:
    sizes = list(accumulate((change or 0 for change in changes), initial=0))
    return Memory(max(sizes), sizes[-1])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the total number of bytes of the tensors."""
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
