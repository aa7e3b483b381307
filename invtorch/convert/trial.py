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
PRODUCTS = (
    *("Addmm", "Addmv", "Baddbmm", "Bmm", "Dot", "Linear", "Matmul", "Mm", "Mv"),
    *("Conv", "CudnnConv", "MkldnnConv", "MiopenConv", "SlowConv"),
    *("CudnnRnn", "MkldnnRnn", "MiopenRnn", "SparseAddmm"),
    *("NativeMultiHeadAttention", "ScaledDotProduct"),
)  # nodes of autograd that mix the entries of what they are given
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
                if buffer.requires_grad and not value.requires_grad:
                    with torch.inference_mode(False):  # else it has no effect
                        buffer.detach_()
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


@contextmanager
def outside_inference_mode(module: nn.Module) -> Iterator[None]:
    """Leave the inference mode, in which there are no graphs, for `no_grad`.

    A module with tensors that were made in the inference mode can have no graph.
    """
    if any(t.is_inference() for t in (*module.parameters(), *module.buffers())):
        yield
    else:
        with torch.inference_mode(False), torch.no_grad():
            yield


def contains(y: Tensor, x: Tensor) -> bool:
    """Return whether a function $y$ of $x$ has a term in which $x$ stands by itself.

    In the graph of $y$ some path leads to the leaf $x$ without a matrix product or a
    convolution: through sums, normalizations and other functions of entries. It is so
    for $x + f(x)$ and for what follows it, and not for $f(x)$ alone. A node of a kind
    that is not known counts as such a path. So does a result without a graph.
    """
    if y.grad_fn is None:
        return True
    return any(getattr(n, "variable", None) is x for n in _without_products(y.grad_fn))


def _without_products(node: Any) -> Iterator[Any]:
    """Yield the nodes of a graph that are reached without a product."""
    found, seen = [node], {node}
    while found:
        node = found.pop()
        yield node
        if not node.name().startswith(PRODUCTS):
            new = {before for before, _ in node.next_functions if before} - seen
            seen |= new
            found += new


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
