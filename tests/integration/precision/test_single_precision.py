"""Four hundred layers in single precision, against double precision."""

import copy

import pytest
import torch
from torch import nn

from invtorch import InvertibleSequential, OrthogonalCoupling

pytestmark = pytest.mark.slow
DEPTH, CHANNELS, SIZE = 400, 16, 16


def conditioner() -> nn.Module:
    half = CHANNELS // 2
    last = nn.Conv2d(half, half, 3, padding=1)
    with torch.no_grad():
        last.weight *= 0.1
        last.bias *= 0.1
    return nn.Sequential(nn.Conv2d(half, half, 3, padding=1), nn.SiLU(), last)


def gradients(net, x, memory, **options) -> torch.Tensor:
    net.memory = memory
    for name, value in options.items():
        setattr(net, name, value)
    weights = torch.linspace(-1, 1, x.numel()).view(x.shape).to(x)
    loss = (net(x) * weights).square().sum()
    found = torch.autograd.grad(loss, list(net.parameters()))
    return torch.cat([g.double().flatten() for g in found])


@pytest.mark.parametrize("anchors", [0, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_as_good_as_those_of_autograd(anchors, seed) -> None:
    torch.manual_seed(seed)
    layers = [OrthogonalCoupling(conditioner(), channels=16) for _ in range(DEPTH)]
    net = InvertibleSequential(*layers)
    x = torch.randn(1, CHANNELS, SIZE, SIZE)
    exact = gradients(copy.deepcopy(net).double(), x.double(), "store")

    def error(memory, **options) -> float:
        found = gradients(net, x, memory, **options)
        return ((found - exact).norm() / exact.norm()).item()

    plain, saved = error("store"), error("invert", anchors=anchors)
    with torch.no_grad():
        rebuilt = net.inverse(net(x))
    rms = (rebuilt - x).square().mean().sqrt().item()
    print(f"plain {plain:.1e}, rebuilding {saved:.1e}, input rms {rms:.1e}")  # noqa: T201
    assert saved <= 1.5 * plain
    assert saved <= 2e-6
    assert rms <= 1e-6
