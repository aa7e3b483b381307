"""A wrapper that calls a member of a container without the context."""

from __future__ import annotations

from collections.abc import Sequence

from invtorch.composite import Composite, Step
from invtorch.containers.sequential import invertible
from invtorch.module import InvertibleModule


class WithoutContext(Composite):
    """Call a module without the context.

    A container passes its context to all members. Wrap a member that takes only the
    state, such as a coupling whose conditioner has one argument.

    Args:
        module: The module, called with only the state.

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
        """Apply the module to the state only."""
        return [Step(self.module, context=False)]
