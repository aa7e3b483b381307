"""Measuring what a training step takes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.autograd.profiler import profile


class Memory(NamedTuple):
    """What a call allocated, in bytes, above what was allocated before it.

    Attributes:
        peak: The most that was held at any time.
        live: What was still held when it returned, its result included.
    """

    peak: int
    live: int


def measure_memory(call: Callable[[], object]) -> Memory:
    """Count the bytes that a call allocates and frees.

    On the CPU the allocations are those of PyTorch's profiler, exact to the byte; on an
    accelerator those of its caching allocator. Memory that the process merely reserves
    (what `nvidia-smi` shows) is not counted.

    Args:
        call: What to measure. Its result is held until the count is taken.

    Returns:
        The peak during the call and what was live at its end.

    Examples:
        >>> measure_memory(lambda: torch.zeros(256, dtype=torch.float32))
        Memory(peak=1024, live=1024)
    """
    gc.collect()  # what is already dead must not be freed in between
    if torch.cuda.is_available():
        return _measure_cuda(call)
    with profile(profile_memory=True) as record:
        result = call()
    del result
    sizes = list(accumulate(_changes(record), initial=0))
    return Memory(max(sizes), sizes[-1])


def _changes(record: profile) -> Iterator[int]:
    results = record.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        yield event.nbytes()  # type: ignore[attr-defined]


def _measure_cuda(call: Callable[[], object]) -> Memory:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak, live = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return Memory(peak - before, live - before)
