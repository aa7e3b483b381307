"""Measure the memory that a call allocates: its peak, and what it leaves."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from invtorch import _torch
from invtorch._checks import check_function

T = TypeVar("T")
BETWEEN = "invtorch: the second call"
# The peak that a GPU's allocator keeps is one for all threads, and is reset.
_ONE_ON_A_GPU = threading.RLock()


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

    On the CPU the allocations are those of the calling thread, exact to the byte, and
    other threads may measure at the same time. On a GPU they are those of the caching
    allocator, by whichever thread; one measurement waits for another. Memory that the
    allocator only reserves (which `nvidia-smi` includes) is not counted.

    Args:
        call: The function to measure. Its result is kept until the end of the
            measurement.
        device: The device whose memory is counted: `"cpu"` or a CUDA device. The
            default is PyTorch's default device.

    Returns:
        The peak of the call, and what is still allocated at its end.

    Raises:
        TypeError: If `call` cannot be called.
        ValueError: If `device` is neither the CPU nor a CUDA device.
        RuntimeError: If it is the CPU and a profiler records this thread already.

    Examples:
        >>> measure_memory(lambda: torch.zeros(256, dtype=torch.float32))
        Memory(peak=1024, live=1024)
    """
    check_function("call", call)
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device is {str(device)!r}, but memory can be counted on 'cpu' or 'cuda'"
        )
    gc.collect()  # garbage must not be freed during the call
    if device.type == "cuda":
        return _measure_cuda(call, device)
    with _recorded() as changes:
        result = call()
    del result
    return _memory_of(changes)


def measure_two(
    first: Callable[[], T], second: Callable[[T], object], device: torch.device
) -> tuple[Memory, Memory]:
    """Count two calls, the second one above what the first one leaves.

    The second call receives the result of the first. One profile records both, so that
    it knows the sizes of the allocations that the second call frees.
    """
    with _collection_disabled:
        if device.type == "cuda":
            results: list[T] = []
            before = _measure_cuda(lambda: results.append(first()), device)
            return before, _measure_cuda(lambda: second(results.pop()), device)
        with _recorded() as changes:
            result = first()
            with record_function(BETWEEN):
                second(result)
    place = changes.index(None)
    return _memory_of(changes[:place]), _memory_of(changes[place + 1 :])


class _CollectionDisabled:
    """Disables the garbage collector, so that nothing allocated before is freed.

    `gc.collect()` beforehand has the same effect, but takes longer than the measurement
    of a layer. The collector is one for all threads: the last one enables it again.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.enabled = False

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.enabled = gc.isenabled()
                gc.disable()
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.enabled:
                gc.enable()


_collection_disabled = _CollectionDisabled()


@contextmanager
def _recorded() -> Iterator[list[int | None]]:
    """Record what this thread allocates in this context; the list is filled at its end.

    Raises:
        RuntimeError: If a profiler records this thread.
    """
    if _torch.is_profiling():
        raise RuntimeError(
            "memory is counted by PyTorch's profiler, which does not nest: end the "
            'other one, or with memory="auto", call it before on an input of this shape'
        )
    changes: list[int | None] = []
    _torch.start_recording_allocations()
    try:
        yield changes
    finally:
        changes += _torch.recorded_allocations(BETWEEN)


def _memory_of(changes: Iterable[int | None]) -> Memory:
    sizes = list(accumulate((change or 0 for change in changes), initial=0))
    return Memory(max(sizes), sizes[-1])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the total number of bytes of the tensors, of shards those kept here."""
    own = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.nbytes for t in own)


def _measure_cuda(call: Callable[[], object], device: torch.device) -> Memory:
    with _ONE_ON_A_GPU:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        live = torch.cuda.memory_allocated(device)
        del result
    return Memory(peak - before, live - before)
