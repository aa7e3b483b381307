"""Looking at an autograd graph: which tensors does an output depend on?"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node


def foreign_leaf(ends: Iterable[Node], known: Iterable[Tensor]) -> Tensor | None:
    """Return a leaf that nodes depend on other than through `known`, if any."""
    known = [*known]
    leaves = {id(t) for t in known if t.grad_fn is None}
    seen: set[Node | None] = {t.grad_fn for t in known}
    todo = [*ends]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf: Tensor | None = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in leaves:
            return leaf
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                todo.append(parent)
    return None
