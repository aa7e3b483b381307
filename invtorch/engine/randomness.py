"""The random state of the devices a layer may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")
RandomStates = dict[torch.device, Tensor]


def random_states(device: torch.device) -> RandomStates:
    """Return the random state of the CPU and of the accelerator `device`."""
    devices = {CPU} if device.type in ("cpu", "meta") else {CPU, device}
    return {where: _get(where) for where in devices}


def moved(before: RandomStates) -> RandomStates:
    """Return those of the states `before` that have advanced since."""
    return {
        device: state
        for device, state in before.items()
        if not torch.equal(state, _get(device))
    }


@contextmanager
def rewound(states: RandomStates) -> Iterator[None]:
    """Draw from `states` inside, and go on afterwards as if nothing was drawn."""
    present = {device: _get(device) for device in states}
    _set(states)
    try:
        yield
    finally:
        _set(present)


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Go on afterwards as if nothing was drawn, by PyTorch, Python or NumPy."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(arrays)


def _get(device: torch.device) -> Tensor:
    if device == CPU:
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)  # type: ignore[no-any-return]


def _set(states: RandomStates) -> None:
    for device, state in states.items():
        if device == CPU:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
