"""Conjugation: change the basis, apply a module, and change back."""

from __future__ import annotations

from collections.abc import Sequence

from invtorch.composite import Composite, Step
from invtorch.containers.sequential import invertible
from invtorch.module import InvertibleModule


class Conjugation(Composite):
    r"""Apply a module in another basis.

    $$ y = T^{-1}\bigl(f(T(x))\bigr) $$

    With $T$ a `Householder1x1` and $f$ an `AdditiveCoupling` this is the layer of the
    i-RIM paper (eq. 12 to 15); `OrthogonalCoupling` computes the same map with
    fewer operations.

    Args:
        basis: The change of basis $T$.
        module: The module $f$ that is applied in the new basis.

    Shape:
        The input of `basis`, whose output must be a valid input of `module`.

    Raises:
        TypeError: If a module is not an `InvertibleModule`.
        ValueError: If a module does not define its inverse.

    Examples:
        >>> from torch import nn
        >>> layer = Conjugation(Householder1x1(4), AdditiveCoupling(nn.Linear(2, 2)))
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    def __init__(self, basis: InvertibleModule, module: InvertibleModule) -> None:
        super().__init__()
        self.basis = invertible(basis)
        self.module = invertible(module)

    def chain(self) -> Sequence[Step]:
        """Change the basis, apply the module, change back."""
        return [Step(self.basis), Step(self.module), Step(self.basis, "inverse")]
