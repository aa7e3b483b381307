"""The numbers, and the network inside of couplings of all libraries."""

from pathlib import Path

import torch
from torch import Tensor, nn

PATH = Path(__file__).parent.parent / "data" / "golden_flows.npz"


class Mix(nn.Module):
    """An affine map of the channels, at every position.

    Args:
        inputs: Number of channels.
        outputs: Number of channels of the output.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """Apply the map; a context is not used."""
        del context
        bias = self.bias.view(-1, *[1] * (x.ndim - 2))
        return torch.einsum("oi,bi...->bo...", self.weight, x) + bias


def mixing(weight: Tensor, bias: Tensor) -> Mix:
    """Return a network with these parameters."""
    network = Mix(*weight.T.shape).to(weight.dtype)
    with torch.no_grad():
        network.weight.copy_(weight)
        network.bias.copy_(bias)
    return network
