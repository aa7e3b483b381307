"""Evaluate blocks such that nothing is changed: neither they nor their arguments."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invtorch._torch import tree_map
from invtorch.engine.restore.context import map_tensors

Tree = TypeVar("Tree")
KEPT = (bool, int, float, complex, str, bytes, type(None), nn.Module)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore buffers and PyTorch's random numbers at the end of this context."""
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    gpus = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng([*gpus]):
        try:
            yield
        finally:
            for owner, name, buffer, value in buffers:
                with torch.no_grad():
                    buffer.copy_(value)
                setattr(owner, name, buffer)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluate without gradients, in evaluation mode, and change nothing."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with unchanged(module), torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def copied(context: Tree) -> Tree:
    """Return a copy of a context which blocks may change, such as a cache of keys.

    Tensors are copied too. Modules are not.

    Raises:
        TypeError: If an object in it cannot be copied.
    """
    without_tensors = map_tensors(partial(Tensor.clone), context)
    mapped: Tree = tree_map(_copied, without_tensors)
    return mapped


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, (Tensor, *KEPT)):
        return leaf
    if isinstance(leaf, torch.Generator):
        return leaf.clone_state()
    try:
        return copy.deepcopy(leaf)
    except Exception as error:
        raise TypeError(
            f"a {type(leaf).__name__} among the arguments cannot be copied for the "
            f"first call: call the converted blocks once without it"
        ) from error
