"""How a member of a container declines the context that the container offers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invtorch.base import InvertibleModule


class WithoutContext(InvertibleModule, composite=True):
    """Keep the context from a module: the one way for a member to decline it.

    A container offers its context to all of its members. A coupling whose conditioner
    takes the state alone is wrapped in this.

    Args:
        module: The module that is called with the state only.

    Shape:
        That of the module.

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
        self.module = module

    def forward(self, x: Any, *_: Any) -> Any:
        """Apply the module to the state alone."""
        return self.module(x)

    def inverse(self, y: Any, *_: Any) -> Any:
        """Invert the module on the state alone."""
        return self.module.inverse(y)

    def forward_and_log_det(self, x: Any, *_: Any) -> tuple[Any, Tensor]:
        """Apply the module to the state alone, with its log-determinant."""
        return self.module.forward_and_log_det(x)

    def inverse_and_log_det(self, y: Any, *_: Any) -> tuple[Any, Tensor]:
        """Invert the module on the state alone, with its log-determinant."""
        return self.module.inverse_and_log_det(y)

    @property
    def layers(self) -> int:
        """As many as the module has."""
        return self.module.layers
