"""How a member of a container declines the context that the container offers."""

from __future__ import annotations

from collections.abc import Sequence

from invtorch.composite import Composite, Step
from invtorch.containers.sequential import invertible
from invtorch.module import InvertibleModule


class WithoutContext(Composite):
    """Keep the context from a module: the one way for a member to decline it.

    A container offers its context to all of its members. A coupling whose conditioner
    takes the state alone is wrapped in this.

    Args:
        module: The module that is called with the state only.

    Shape:
        That of the module.

    Raises:
        TypeError: If a module is not an `InvertibleModule`.
        ValueError: If a module does not define its inverse.

    Examples:
        >>> from torch import nn
        >>> plain = AdditiveCoupling(nn.Linear(2, 2))
        >>> net = InvertibleSequential(WithoutContext(plain))
        >>> x, context = torch.randn(1, 4), torch.randn(1, 4)
        >>> torch.equal(net(x, context), plain(x))
        True
    """

    def __init__(self, module: InvertibleModule) -> None:
        super().__init__()
        self.module = invertible(module)

    def chain(self) -> Sequence[Step]:
        """Apply the module to the state alone."""
        return [Step(self.module, context=False)]
