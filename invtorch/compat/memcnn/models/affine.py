"""The affine coupling of memcnn, and its adapters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from invtorch.compat.memcnn.models.coupling import Coupling, of_its_shape

__all__ = [
    "AffineAdapterNaive",
    "AffineAdapterSigmoid",
    "AffineBlock",
    "AffineCoupling",
]


class AffineAdapterNaive(nn.Module):
    r"""Compute scale and shift, $t = f(x)$ and $s = e^t$.

    Args:
        module: The network $f$.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.f = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift."""
        t: Tensor = self.f(x)
        return t.exp(), t


class AffineAdapterSigmoid(nn.Module):
    r"""Compute scale and shift from the odd and the even channels of a network.

    $$ s = \sigma(h_{1::2} + 2), \qquad t = h_{0::2}, \qquad h = f(x) $$

    Args:
        module: The network $f$, with twice the channels.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.f = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift."""
        h: Tensor = self.f(x)
        if h.shape[1] % 2:
            raise ValueError(
                f"the network returned {h.shape[1]} channels, but scale and shift need "
                f"an even number"
            )
        return torch.sigmoid(h[:, 1::2] + 2.0), h[:, ::2]


class AffineCoupling(Coupling):
    r"""Two networks scale and shift one half of the channels each.

    $$ (s_1, t_1) = F(x_2), \quad y_1 = s_1 x_1 + t_1, \qquad
       (s_2, t_2) = G(y_1), \quad y_2 = s_2 x_2 + t_2 $$

    Args:
        Fm: The network $F$, which returns scale and shift; or what `adapter` wraps.
        Gm: The network $G$; by default a copy of $F$.
        adapter: A class that wraps both networks, such as `AffineAdapterNaive`.
        implementation_fwd: -1; 0 and 1 do the same, and are deprecated.
        implementation_bwd: The same for the inverse.
        split_dim: The axis that is split in halves.

    Raises:
        TypeError: If a network is not an `nn.Module`, or returns no scale and shift.
        ValueError: If the state has no halves, or a network returns what does not fit.

    Examples:
        >>> import invtorch.compat.memcnn as memcnn
        >>> network = nn.Conv2d(2, 2, 3, padding=1)
        >>> layer = memcnn.AffineCoupling(network, adapter=memcnn.AffineAdapterNaive)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-4)
        True
    """

    def __init__(
        self,
        Fm: nn.Module,
        Gm: nn.Module | None = None,
        adapter: Callable[[nn.Module], nn.Module] | None = None,
        implementation_fwd: int = -1,
        implementation_bwd: int = -1,
        split_dim: int = 1,
    ) -> None:
        super().__init__(
            Fm, Gm, adapter, implementation_fwd, implementation_bwd, split_dim
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift both halves."""
        return self.forward_and_log_det(x)[0]

    def inverse(self, y: Tensor) -> Tensor:
        """Undo both."""
        return self.inverse_and_log_det(y)[0]

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Scale and shift both halves; also return $\sum \ln\lvert s\rvert$."""
        x1, x2 = self.halves(x, self.implementation_fwd)
        s1, t1 = _scale_and_shift(self.Fm, x2)
        y1 = of_its_shape(x1, s1 * x1 + t1)
        s2, t2 = _scale_and_shift(self.Gm, y1)
        y2 = of_its_shape(x2, s2 * x2 + t2)
        return self.joined(y1, y2), _log_det(s1, x1) + _log_det(s2, x2)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Undo both; also return $-\sum \ln\lvert s\rvert$."""
        y1, y2 = self.halves(y, self.implementation_bwd)
        s2, t2 = _scale_and_shift(self.Gm, y1)
        x2 = of_its_shape(y2, (y2 - t2) / s2)
        s1, t1 = _scale_and_shift(self.Fm, x2)
        x1 = of_its_shape(y1, (y1 - t1) / s1)
        return self.joined(x1, x2), -_log_det(s1, x1) - _log_det(s2, x2)


class AffineBlock(AffineCoupling):
    """Deprecated: use `AffineCoupling`."""

    def __init__(
        self,
        Fm: nn.Module,
        Gm: nn.Module | None = None,
        implementation_fwd: int = 1,
        implementation_bwd: int = 1,
    ) -> None:
        super().__init__(Fm, Gm, None, implementation_fwd, implementation_bwd)


def _scale_and_shift(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    pair = network(x)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"{type(network).__name__} returned a {type(pair).__name__}, but must "
            f"return scale and shift: set adapter=AffineAdapterNaive, for instance"
        )
    scale, shift = pair
    return scale, shift


def _log_det(s: Tensor, half: Tensor) -> Tensor:
    return s.expand(half.shape).abs().log().flatten(1).sum(1)
