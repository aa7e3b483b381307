"""The state of a generator of random numbers, of PyTorch, Python or NumPy."""

from __future__ import annotations

import random
import sys
import threading
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from invtorch._torch import same_values

CPU = torch.device("cpu")
PYTHON, NUMPY = "Python's `random`", "NumPy's global generator"
PYTHON_AND_NUMPY = (PYTHON, NUMPY)
# a device of PyTorch, one of these names, or a generator
Source: TypeAlias = Any

# PyTorch allocates the tensor of a state while it holds the lock of the generator. If
# Python then collects garbage and switches threads, the other thread could wait for the
# lock of the generator while it holds the GIL: a deadlock.
_ONE_THREAD = threading.RLock()


def on_devices(device: torch.device) -> list[Source]:
    """Return the generators of PyTorch for the CPU and for the accelerator `device`."""
    return [CPU] if device.type in ("cpu", "meta") else [CPU, device]


def of_other_libraries() -> list[Source]:
    """Return the global generators of Python and, if it is imported, of NumPy."""
    return [PYTHON, NUMPY] if "numpy.random" in sys.modules else [PYTHON]


def is_generator(kind: type) -> bool:
    """Return whether instances of a class are generators whose state can be set."""
    known = _kinds.get(kind)
    if known is None:
        kinds: tuple[type, ...] = (torch.Generator, random.Random)
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            kinds += (numpy.Generator, numpy.RandomState, numpy.BitGenerator)
        unset = random.SystemRandom  # which has no state
        known = issubclass(kind, kinds) and not issubclass(kind, unset)
        if len(_kinds) < 10_000:
            _kinds[kind] = known
    return known


_kinds: dict[type, bool] = {}


def state_of(source: Source) -> Any:
    """Return the state of a generator."""
    owner = _owner(source)
    for name in ("get_state", "getstate"):
        if hasattr(owner, name):
            with _ONE_THREAD:
                return getattr(owner, name)()
    return getattr(owner, "bit_generator", owner).state


def set_state(source: Source, state: Any) -> None:
    """Set the state of a generator."""
    owner = _owner(source)
    for name in ("set_state", "setstate"):
        if hasattr(owner, name):
            with _ONE_THREAD:
                getattr(owner, name)(state)
            return
    getattr(owner, "bit_generator", owner).state = state


def same_state(one: Any, other: Any) -> bool:
    """Return whether two states of a generator are equal."""
    if isinstance(one, Tensor):
        return same_values(one, other)
    if isinstance(one, dict):  # of a generator of NumPy
        return all(same_state(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple) and isinstance(one[0], str):  # of NumPy's global one
        return all(map(same_state, one, other))
    if hasattr(one, "tobytes"):
        return bool(one.tobytes() == other.tobytes())
    return bool(one == other)


def name_of(source: Source) -> str:
    """Return the name of a generator in messages."""
    if isinstance(source, torch.device):
        return f"the generator of {source}"
    return source if isinstance(source, str) else f"its {type(source).__name__}"


class _OfAnAccelerator(NamedTuple):
    device: torch.device

    def get_state(self) -> Tensor:
        """Return the state."""
        state: Tensor = torch.get_device_module(self.device).get_rng_state(self.device)
        return state

    def set_state(self, state: Tensor) -> None:
        """Set the state."""
        torch.get_device_module(self.device).set_rng_state(state, self.device)


def _owner(source: Source) -> Any:
    """Return the object or module whose functions get and set the state."""
    if isinstance(source, torch.device):
        return torch.default_generator if source == CPU else _OfAnAccelerator(source)
    if isinstance(source, str):
        return random if source == PYTHON else sys.modules["numpy.random"]
    return source
