"""The additive coupling of memcnn."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invtorch.compat.memcnn.models.coupling import Coupling, of_its_shape
from invtorch.module import no_log_det

__all__ = ["AdditiveBlock", "AdditiveCoupling"]


class AdditiveCoupling(Coupling):
    r"""Two networks shift one half of the channels each.

    $$ y_1 = x_1 + F(x_2), \qquad y_2 = x_2 + G(y_1) $$

    `invtorch.ReversibleBlock` is the same map with one evaluation less in the backward
    pass.

    Args:
        Fm: The network $F$.
        Gm: The network $G$; by default a copy of $F$.
        implementation_fwd: -1; 0 and 1 do the same, and are deprecated.
        implementation_bwd: The same for the inverse.
        split_dim: The axis that is split in halves.

    Raises:
        TypeError: If a network is not an `nn.Module`.
        ValueError: If the state has no halves, or a network returns what does not fit.

    Examples:
        >>> import invtorch.compat.memcnn as memcnn
        >>> layer = memcnn.AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1))
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        Fm: nn.Module,
        Gm: nn.Module | None = None,
        implementation_fwd: int = -1,
        implementation_bwd: int = -1,
        split_dim: int = 1,
    ) -> None:
        super().__init__(
            Fm, Gm, None, implementation_fwd, implementation_bwd, split_dim
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add both shifts."""
        x1, x2 = self.halves(x, self.implementation_fwd)
        y1 = of_its_shape(x1, x1 + self.Fm(x2))
        y2 = of_its_shape(x2, x2 + self.Gm(y1))
        return self.joined(y1, y2)

    def inverse(self, y: Tensor) -> Tensor:
        """Subtract both shifts."""
        y1, y2 = self.halves(y, self.implementation_bwd)
        x2 = of_its_shape(y2, y2 - self.Gm(y1))
        x1 = of_its_shape(y1, y1 - self.Fm(x2))
        return self.joined(x1, x2)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `forward(x)` and zeros."""
        return self.forward(x), no_log_det(x)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return `inverse(y)` and zeros."""
        return self.inverse(y), no_log_det(y)


class AdditiveBlock(AdditiveCoupling):
    """Deprecated: use `AdditiveCoupling`."""

    def __init__(
        self,
        Fm: nn.Module,
        Gm: nn.Module | None = None,
        implementation_fwd: int = 1,
        implementation_bwd: int = 1,
    ) -> None:
        options: dict[str, Any] = {"implementation_fwd": implementation_fwd}
        super().__init__(Fm, Gm, implementation_bwd=implementation_bwd, **options)
