"""Looking at an autograd graph: which tensors does an output depend on?"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node


def foreign_leaf(outputs: Iterable[Tensor], known: Iterable[Tensor]) -> Tensor | None:
    """Return a leaf that `outputs` depend on other than through `known`, if any."""
    leaves, seen = set(), set()
    for tensor in known:
        if tensor.grad_fn is None:
            leaves.add(id(tensor))
        else:
            seen.add(tensor.grad_fn)
    todo: list[Node] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf: Tensor | None = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in leaves:
            return leaf
        todo.extend(parent for parent, _ in node.next_functions if parent is not None)
    return None
