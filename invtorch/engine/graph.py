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
    todo = [node for node in ends if node not in seen]
    while todo:
        node = todo.pop()
        parents = node.next_functions
        if not parents:  # only here the node of a leaf is found
            leaf: Tensor | None = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in leaves:
                return leaf
        for parent, _ in parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return None
