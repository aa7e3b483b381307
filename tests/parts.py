"""Networks and modules that the tests build their stacks from."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from invtorch import InvertibleModule, VolumePreserving

CONVOLUTIONS = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Conditioner(nn.Module):
    """A smooth conditioner that reads its context and counts its evaluations."""

    def __init__(self, inputs: int, outputs: int, dims: int = 2, dropout: float = 0.0):
        super().__init__()
        hidden, conv = 4, CONVOLUTIONS[dims]
        size = {"kernel_size": 3, "padding": 1} if dims else {}
        self.first = conv(inputs, hidden, **size)
        self.second = conv(hidden, outputs, **size)
        self.dropout = nn.Dropout(dropout)
        self.calls: list[None] = []  # what a replay does to a list is not undone

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.calls.append(None)
        h = torch.tanh(self.first(x))
        for c in context:
            h = h * (1 + self.on_grid(c, h) / 2)
        return self.second(self.dropout(h))

    def on_grid(self, context: Tensor, _: Tensor) -> Tensor:
        """Return what multiplies the hidden channels."""
        return context

    @property
    def evaluations(self) -> int:
        """How often it was called, replays counted."""
        return len(self.calls)


class Averaging(Conditioner):
    """A conditioner that averages its context over the positions of the state."""

    def on_grid(self, context: Tensor, h: Tensor) -> Tensor:
        parts = (
            torch.view_as_real(context).unbind(-1)
            if context.is_complex()
            else [context]
        )
        parts = [functional.interpolate(p, h.shape[2:], mode="area") for p in parts]
        return torch.complex(*parts) if context.is_complex() else parts[0]


class FromContext(Conditioner):
    """A conditioner that takes the context only, which may be nothing."""

    def __init__(self, outputs: int, dims: int = 2):
        super().__init__(1, outputs, dims)
        self.code = nn.Parameter(torch.ones(1, 1, *(1,) * dims))

    def forward(self, *context: Tensor) -> Tensor:
        return super().forward(self.code, *context)


def known(inputs: int, outputs: int, dims: int = 2) -> nn.Sequential:
    """Return a conditioner whose derivative the library knows."""
    conv = CONVOLUTIONS[dims]
    size = {"kernel_size": 3, "padding": 1} if dims else {}
    return nn.Sequential(conv(inputs, 4, **size), nn.Tanh(), conv(4, outputs, **size))


class Scale(InvertibleModule):
    """What a newcomer writes: `forward`, `inverse`, nothing else."""

    def __init__(self, channels: int, dims: int = 2):
        super().__init__()
        self.log_scale = nn.Parameter(torch.linspace(-0.3, 0.2, channels))
        self.shape = (channels, *(1,) * dims)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return x * self.log_scale.view(self.shape).exp()

    def inverse(self, y: Tensor, *_: Tensor) -> Tensor:
        return y * (-self.log_scale).view(self.shape).exp()

    def forward_and_log_det(self, x: Tensor, *_: Tensor):
        y = self.forward(x)
        return y, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, *_: Tensor):
        x = self.inverse(y)
        return x, -self._log_det(y)

    def _log_det(self, state: Tensor) -> Tensor:
        positions = state.numel() // max(1, len(state) * len(self.log_scale))
        return (self.log_scale.sum() * positions).expand(len(state))


class Leapfrog(VolumePreserving):
    """A layer whose state is a tuple: position and momentum."""

    def __init__(self, channels: int, dims: int = 2):
        super().__init__()
        self.force = Conditioner(channels, channels, dims)
        self.drift = Conditioner(channels, channels, dims)

    def forward(self, state, *context: Tensor):
        q, p = state
        p = p + self.force(q, *context)
        return q + self.drift(p, *context), p

    def inverse(self, state, *context: Tensor):
        q, p = state
        q = q - self.drift(p, *context)
        return q, p - self.force(q, *context)


class Reverse(VolumePreserving):
    """Turn the order of the channels around, so that a coupling's halves change roles.

    Without it the half that conditions an `AdditiveCoupling` is the same in every
    layer, and a half that was rebuilt wrongly would go unnoticed.
    """

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return x.flip(1)

    def inverse(self, y: Tensor, *_: Tensor) -> Tensor:
        return y.flip(1)
