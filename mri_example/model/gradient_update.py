"""How the i-RIM learns of the measured data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invtorch import VolumePreserving


class GradientUpdate(VolumePreserving):
    r"""Write the gradient of the data term into the memory of the machine state.

    $$ \eta' = \eta, \qquad s' = s + (\nabla_\eta D(d, A\eta),\, 0) $$

    with $\eta$ the first channels of the state and $s$ the others: an additive coupling
    whose shift has fewer channels than what it shifts (eq. 10 and 19).

    Args:
        gradient: A function of the estimate $\eta$ and the data $d$ that returns a
            tensor of the shape of the estimate.
        estimate_channels: Number of channels in $\eta$.

    Shape:
        `(batch, channels, *space)` with at least `2 * estimate_channels` channels.

    Raises:
        ValueError: If the state has too few channels.

    References:
        Putzky and Welling, *Invert to learn to invert*, 2019. arXiv:1911.10914
    """

    def __init__(self, gradient: Callable[..., Tensor], estimate_channels: int) -> None:
        super().__init__()
        self.gradient = gradient
        self.estimate_channels = estimate_channels

    def forward(self, x: Tensor, *data: Any) -> Tensor:
        """Add the gradient."""
        return self._moved(x, self._gradient(x, data))

    def inverse(self, y: Tensor, *data: Any) -> Tensor:
        """Subtract the gradient."""
        return self._moved(y, -self._gradient(y, data))

    def replay(self, y: Tensor, *data: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x` and attach `y` to it with one evaluation of the gradient."""
        return self._replay(y, data, sign=1)

    def replay_inverse(self, x: Tensor, *data: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `y` and attach `x` to it with one evaluation of the gradient."""
        return self._replay(x, data, sign=-1)

    def _replay(self, output: Tensor, data: Any, sign: int) -> tuple[Tensor, Tensor]:
        state = output.detach().clone().requires_grad_()
        shift = sign * self._gradient(state, data)
        _, moved, _ = self._parts(state.data)
        moved -= shift.detach()
        return state, self._moved(state, shift)

    def _gradient(self, state: Tensor, data: Any) -> Tensor:
        estimate, _, _ = self._parts(state)
        found: Tensor = self.gradient(estimate, *data)
        if found.shape != estimate.shape:
            raise ValueError(
                f"the gradient has shape {tuple(found.shape)}, but the estimate "
                f"{tuple(estimate.shape)}: return one number for each of its entries"
            )
        return found

    def _moved(self, state: Tensor, shift: Tensor) -> Tensor:
        estimate, moved, rest = self._parts(state)
        return torch.cat([estimate, moved + shift, rest], dim=1)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, channels = self.estimate_channels, state.shape[1]
        if channels < 2 * k:
            raise ValueError(
                f"the state has {channels} channels, but {k} for the estimate and as "
                f"many for its gradient need at least {2 * k}"
            )
        estimate, moved, rest = state.tensor_split((k, 2 * k), dim=1)
        return estimate, moved, rest
