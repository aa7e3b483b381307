"""The random states of PyTorch on the devices that a layer may draw from."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from invtorch._torch import same_values

CPU = torch.device("cpu")
RandomStates: TypeAlias = dict[torch.device, Tensor]

# PyTorch allocates the tensor of a state while it holds the lock of the generator. If
# Python then collects garbage and switches threads, the other thread could wait for the
# lock of the generator while it holds the GIL: a deadlock.
_ONE_THREAD = threading.RLock()


def random_states(device: torch.device) -> RandomStates:
    """Return the random state of the CPU and of the accelerator `device`."""
    states = {CPU: _get(CPU)}
    if device.type not in ("cpu", "meta"):
        states[device] = _get(device)
    return states


def advanced(before: RandomStates) -> RandomStates:
    """Return the states in `before` that have advanced since."""
    return {
        device: state
        for device, state in before.items()
        if not same_values(state, _get(device))
    }


class RandomStatesKept:
    """Context manager after which random states are as before.

    Args:
        device: The device whose random state is kept, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.before = random_states(self.device)

    def __exit__(self, *_: object) -> None:
        _set(advanced(self.before))


@contextmanager
def random_states_set(states: RandomStates) -> Iterator[None]:
    """Set random states in this context, and restore the current ones afterwards."""
    present = {device: _get(device) for device in states}
    _set(states)
    try:
        yield
    finally:
        _set(present)


@contextmanager
def all_random_states_kept() -> Iterator[None]:
    """Restore the random states of PyTorch, Python and NumPy afterwards.

    It replaces `torch.random.fork_rng`, in which threads may deadlock (see
    `_ONE_THREAD`).
    """
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy and numpy.random.get_state()
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    present = {device: _get(device) for device in (CPU, *gpus)}
    try:
        yield
    finally:
        _set(present)
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)


def _get(device: torch.device) -> Tensor:
    with _ONE_THREAD:
        if device == CPU:
            return torch.default_generator.get_state()
        state: Tensor = torch.get_device_module(device).get_rng_state(device)
        return state


def _set(states: RandomStates) -> None:
    with _ONE_THREAD:
        for device, state in states.items():
            if device == CPU:
                torch.set_rng_state(state)
            else:
                torch.get_device_module(device).set_rng_state(state, device)
