"""A network that reads the image from the final machine state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

CONVOLUTIONS: dict[int, tuple[Any, Any]] = {
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


class ReadOut(nn.Module):
    r"""Read one complex image from all channels of the state.

    $$ r(x) = W_3 * \operatorname{relu}(W_2 * \operatorname{relu}(W_1 * x)) $$

    The residual block of the i-RIM without its gate: weight-normalized, with as many
    hidden channels as the state has.

    Args:
        channels: Channels of the machine state.
        dims: Number of spatial axes, 2 or 3.

    Shape:
        From `(batch, channels, *space)` to `(batch, 2, *space)`, real and imaginary
        part.

    References:
        Putzky et al., *i-RIM applied to the fastMRI challenge*, 2019. arXiv:1910.08952
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        conv, transposed = CONVOLUTIONS[dims]
        self.gather = weight_norm(conv(channels, channels, 1))
        self.look = weight_norm(conv(channels, channels, 3, padding=1))
        self.spread = weight_norm(transposed(channels, 2, 1, bias=False))

    def forward(self, state: Tensor) -> Tensor:
        """Return the two channels of the image."""
        h = F.relu(self.gather(state))
        h = F.relu(self.look(h))
        out: Tensor = self.spread(h)
        return out
