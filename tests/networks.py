"""The networks of the drift table: couplings whose strength is a number."""

import torch
from torch import nn

from invtorch import (
    AdditiveCoupling,
    Conjugation,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
)
from tests.parts import Reverse

CHANNELS, SIZE = 16, 16


def conditioner(strength: float, channels: int = CHANNELS // 2) -> nn.Module:
    last = nn.Conv2d(16, channels, 3, padding=1)
    with torch.no_grad():
        last.weight.mul_(strength)
        last.bias.mul_(strength)
    return nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.SiLU(), last)


def orthogonal(strength: float, depth: int, **options) -> InvertibleSequential:
    return InvertibleSequential(
        *[
            OrthogonalCoupling(conditioner(strength), channels=CHANNELS)
            for _ in range(depth)
        ],
        **options,
    )


def stacked(form: str, strength: float, depth: int, **options) -> InvertibleSequential:
    """Stack couplings of one of the forms of the depth study."""
    layers = {
        "additive": lambda: [AdditiveCoupling(conditioner(strength)), Reverse()],
        "paper": lambda: [
            Conjugation(
                Householder1x1(CHANNELS), AdditiveCoupling(conditioner(strength))
            )
        ],
        "algebraic": lambda: [
            OrthogonalCoupling(conditioner(strength), channels=CHANNELS)
        ],
    }[form]
    members = [layer for _ in range(depth) for layer in layers()]
    return InvertibleSequential(*members, **options)


def images(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, SIZE, SIZE)


def gradient(net: InvertibleModule, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of all parameters as one vector in float64."""
    net.zero_grad()
    net(x).square().mean().backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters()])


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm() / truth.norm())
