"""What an evaluation of a recorded call gives when it is made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor
from torch.autograd.graph import Node

from invtorch.shifted import Shifted

Tensors: TypeAlias = tuple[Tensor, ...]


class Replayed(NamedTuple):
    """A call evaluated again.

    Attributes:
        inputs: The inputs of its node.
        outputs: What it returned, attached to the inputs; nothing if it was `shifted`.
        shifted: How it returned its input shifted.
        pull_back: Its derivative, if that is known: from the gradient of the output,
            and which inputs need one, to the gradients of the inputs.
    """

    inputs: Tensors
    outputs: Tensors
    shifted: Shifted | None = None
    pull_back: Callable[[Tensor, Sequence[bool]], list[Tensor | None]] | None = None

    @property
    def leaves(self) -> Tensors:
        """What the graph was made from, in place of the inputs."""
        kept = self.shifted.kept if self.shifted else self.inputs[0]
        return (kept, *self.inputs[1:])

    @property
    def ends(self) -> list[Node]:
        """The nodes where the graph ends."""
        if self.shifted:
            return [self.shifted.edge.node] if self.shifted.edge else []
        return [t.grad_fn for t in self.outputs if t.grad_fn is not None]
