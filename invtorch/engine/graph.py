"""Looking at an autograd graph: which tensors does an output depend on?"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge


def foreign_leaf(outputs: Iterable[Tensor], known: Iterable[Tensor]) -> Tensor | None:
    """Return a leaf that `outputs` depend on other than through `known`, if any."""
    stop = {get_gradient_edge(t).node for t in known if t.requires_grad}
    todo: list[Node] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(stop)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            return node.variable  # type: ignore[no-any-return]
        todo.extend(parent for parent, _ in node.next_functions if parent is not None)
    return None
