"""The state of a generator of random numbers, of PyTorch, Python or NumPy."""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from invtorch._torch import same_values
from invtorch.engine.restore.locks import in_forked_processes

CPU = torch.device("cpu")
PYTHON, NUMPY = "Python's `random`", "NumPy's global generator"
PYTHON_AND_NUMPY = (PYTHON, NUMPY)
# a device of PyTorch, one of these names, or a generator
Source: TypeAlias = Any

# PyTorch allocates the tensor of a state while it holds the lock of the generator. If
# Python then collects garbage and switches threads, the other thread could wait for the
# lock of the generator while it holds the GIL: a deadlock.
_ONE_THREAD = threading.RLock()


def _forget_other_threads() -> None:
    global _ONE_THREAD
    _ONE_THREAD = threading.RLock()


in_forked_processes(_forget_other_threads)


def on_devices(device: torch.device) -> list[Source]:
    """Return the generators of PyTorch for the CPU and for the accelerator `device`."""
    return [CPU] if device.type in ("cpu", "meta") else [CPU, device]


def of_other_libraries() -> list[Source]:
    """Return the global generators of Python and, if it is imported, of NumPy."""
    return [PYTHON, NUMPY] if "numpy.random" in sys.modules else [PYTHON]


def is_generator(kind: type) -> bool:
    """Return whether instances of a class are generators whose state can be set."""
    known = _kinds.get(ref(kind))
    if known is None:
        kinds: tuple[type, ...] = (torch.Generator, random.Random)
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            kinds += (numpy.Generator, numpy.RandomState, numpy.BitGenerator)
        unset = random.SystemRandom  # which has no state
        known = issubclass(kind, kinds) and not issubclass(kind, unset)
        _kinds[ref(kind, _forget)] = known
    return known


_kinds: dict[ref[type], bool] = {}


def _forget(kind: ref[type], kinds: dict[Any, Any] = _kinds) -> None:
    kinds.pop(kind, None)


# --- where they are held --------------------------------------------------------------

MOST = 256  # objects that are searched for generators, for each layer
FIRST = 32  # entries of a collection that are searched
PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor, nn.Parameter)
OPAQUE = (nn.Module, Tensor, ModuleType, type)
COLLECTIONS = (list, tuple, set, frozenset, deque)
Global: TypeAlias = tuple[dict[str, Any], str]  # a namespace, and a name in it


def generators_in(values: Iterable[Any]) -> list[Source]:
    """Return the generators among values, and those that they hold.

    Searched are collections, attributes of objects, arguments of `functools.partial`,
    what a method is bound to, and what a function encloses. Modules, and objects of
    PyTorch's own classes, are not.
    """
    found: dict[int, Source] = {}
    seen: set[int] = set()
    pending = [*values]
    while pending and len(seen) < MOST:
        value = pending.pop()
        kind = type(value)
        if kind in PLAIN or id(value) in seen:
            continue
        seen.add(id(value))
        if is_generator(kind):
            found[id(value)] = value
        elif not (isinstance(value, OPAQUE) or _is_of_torch(kind)):
            pending += _held_by(value)
    return [*found.values()]


def _held_by(value: Any) -> list[Any]:
    """Return the objects that one holds."""
    if isinstance(value, dict):
        return [*islice([*value.values()], FIRST)]
    if isinstance(value, COLLECTIONS):
        return [*islice([*value], FIRST)]
    if isinstance(value, FunctionType):
        return _enclosed(value)
    if isinstance(value, (MethodType, BuiltinMethodType)):
        own = value.__self__
        return [own, getattr(value, "__func__", None)]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    slots = [s for k in type(value).__mro__ for s in k.__dict__.get("__slots__", ())]
    inside = [*getattr(value, "__dict__", {}).values()][:FIRST]
    return inside + [getattr(value, s, None) for s in slots if isinstance(s, str)]


def _enclosed(function: FunctionType) -> list[Any]:
    """Return what a function encloses, and its defaults."""
    cells = map(_content, function.__closure__ or ())
    defaults = (function.__kwdefaults__ or {}).values()
    return [*cells, *(function.__defaults__ or ()), *defaults]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not set yet
        return None


def globals_of(kind: type) -> list[Global]:
    """Return the generators that methods of a class use as global variables.

    Functions of the same file that they call are searched too.
    """
    known = _globals.get(kind)
    if known is None:
        methods = [
            m
            for base in kind.__mro__
            if not _is_of_torch(base) and base is not object
            for m in base.__dict__.values()
            if isinstance(m, FunctionType)
        ]
        _globals[kind] = known = _globals_used(methods)
    return known


_globals: WeakKeyDictionary[type, list[Global]] = WeakKeyDictionary()


def _globals_used(functions: list[FunctionType]) -> list[Global]:
    found, seen = [], {*functions}
    while functions and len(seen) < MOST:
        function = functions.pop()
        space = function.__globals__
        for name in function.__code__.co_names:
            value = space.get(name)
            if not isinstance(value, FunctionType):
                if generators_in([value]):
                    found.append((space, name))
            elif value not in seen and value.__module__ == function.__module__:
                seen.add(value)
                functions.append(value)
    return found


def _is_of_torch(kind: type) -> bool:
    return kind.__module__ == "torch" or kind.__module__.startswith("torch.")


def roots_of(parts: Sequence[nn.Module]) -> list[Any]:
    """Return what may hold generators: attributes of modules, and global variables.

    Modules of PyTorch's own classes hold only what somebody puts on them: a generator.
    """
    roots: list[Any] = []
    for part in parts:
        own, kind = vars(part), type(part)
        if not _is_of_torch(kind):
            roots += [own[name] for name in own.keys() - OF_ALL_MODULES]
            roots += [space.get(name) for space, name in globals_of(kind)]
    return roots


def generators_of(parts: Sequence[nn.Module], context: Iterable[Any]) -> list[Source]:
    """Return the generators that modules hold or use, and those in a context."""
    held = [value for part in parts for value in vars(part).values()]
    return generators_in([*held, *roots_of(parts), *context])


OF_ALL_MODULES = frozenset(vars(nn.Module()))  # attributes of every module


# --- their states ---------------------------------------------------------------------


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
