"""Conjugation: do something in another basis, and come back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invtorch.base import InvertibleModule


class Conjugation(InvertibleModule, composite=True):
    r"""Apply a module in the basis that another one leads to.

    $$ y = T^{-1}\bigl(f(T(x))\bigr) $$

    With $T$ a `Householder1x1` and $f$ an `AdditiveCoupling` this is the layer of the
    i-RIM paper (eq. 12 to 15); `OrthogonalCoupling` computes the same map in fewer
    operations.

    Args:
        basis: The change of basis $T$.
        module: The module $f$ that acts in it.

    Shape:
        That of `module`, between the two applications of `basis`.

    Examples:
        >>> from torch import nn
        >>> layer = Conjugation(Householder1x1(4), AdditiveCoupling(nn.Linear(2, 2)))
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    def __init__(self, basis: InvertibleModule, module: InvertibleModule) -> None:
        super().__init__()
        self.basis = basis
        self.module = module

    def forward(self, x: Any, *context: Any) -> Any:
        """Change the basis, apply the module, change back."""
        return self.basis.inverse(
            self.module(self.basis(x, *context), *context), *context
        )

    def inverse(self, y: Any, *context: Any) -> Any:
        """Change the basis, invert the module, change back."""
        return self.basis.inverse(
            self.module.inverse(self.basis(y, *context), *context), *context
        )

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        """Do as `forward` and sum the three log-determinants."""
        x, there = self.basis.forward_and_log_det(x, *context)
        x, inside = self.module.forward_and_log_det(x, *context)
        x, back = self.basis.inverse_and_log_det(x, *context)
        return x, there + inside + back

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        """Do as `inverse` and sum the three log-determinants."""
        y, there = self.basis.forward_and_log_det(y, *context)
        y, inside = self.module.inverse_and_log_det(y, *context)
        y, back = self.basis.inverse_and_log_det(y, *context)
        return y, there + inside + back

    @property
    def layers(self) -> int:
        """Those of the module, and twice those of the basis."""
        return 2 * self.basis.layers + self.module.layers
