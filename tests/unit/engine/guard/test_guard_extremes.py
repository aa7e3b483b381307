"""The guard where states are zero, and where numbers end."""

import pytest
import torch
from torch import nn

from invtorch import (
    AdditiveCoupling,
    DriftError,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
)
from tests.compilation import COMPILING, compiled
from tests.devices import ON_THE_CPU
from tests.networks import CHANNELS, orthogonal
from tests.parts import Leapfrog

pytestmark = [*COMPILING, ON_THE_CPU]
RUNS = pytest.mark.parametrize(
    "run",
    [lambda net: net, pytest.param(compiled, marks=pytest.mark.slow)],
    ids=["eager", "compiled"],
)


def depth_of(run, eager: int) -> int:
    """Return how many layers to stack: to compile many takes long."""
    return 1 if run is compiled else eager


class Unchanged(InvertibleModule):
    """Does nothing."""

    def forward(self, state):
        return state[0] + 0, state[1] + 0

    def inverse(self, state):
        return state[0] + 0, state[1] + 0


@pytest.mark.parametrize(
    ("run", "anchors"),
    [
        pytest.param(lambda net: net, 0, id="eager"),
        pytest.param(lambda net: net, 3, id="eager, 3 anchors"),
        pytest.param(compiled, 0, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_zeros_that_are_not_changed_pass_the_guard(run, anchors) -> None:
    torch.manual_seed(0)
    layers = [Householder1x1(CHANNELS) for _ in range(2)]
    couplings = orthogonal(0.5, depth_of(run, eager=20))
    net = InvertibleSequential(*layers, *couplings, anchors=anchors)
    x = torch.zeros(1, CHANNELS, 8, 8, requires_grad=True)
    run(net)(x).square().sum().backward()
    assert x.grad.isfinite().all()


@RUNS
def test_a_part_of_zeros_that_is_not_changed_passes_the_guard(run) -> None:
    torch.manual_seed(0)
    layers = [Leapfrog(2) for _ in range(depth_of(run, eager=10))]
    net = InvertibleSequential(Unchanged(), Unchanged(), *layers, anchors=0)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    run(net)((x, torch.zeros_like(x)))[0].square().sum().backward()
    assert x.grad.isfinite().all()


class FromNothing(InvertibleModule):
    """Its inverse brings back ones where zeros were."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.shift

    def inverse(self, y):
        return torch.ones_like(y)


@RUNS
def test_zeros_that_are_rebuilt_wrongly_raise(run) -> None:
    couplings = orthogonal(0.5, depth_of(run, eager=3))
    nothing = nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 1)
    for parameter in nothing.parameters():
        nn.init.zeros_(parameter)
    first = AdditiveCoupling(nothing)  # a container does not rebuild its input
    net = InvertibleSequential(first, FromNothing(), *couplings, anchors=0)
    with pytest.raises(RuntimeError, match=r"layer 1 \(FromNothing\)"):
        run(net)(torch.zeros(1, CHANNELS, 8, 8)).square().sum().backward()


class Explodes(AdditiveCoupling):
    """Its inverse multiplies what it rebuilds by a huge number."""

    replay = None

    def inverse(self, y, *context):
        return super().inverse(y, *context) * 1e100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_overflows_raises(dtype) -> None:
    layers = [Explodes(nn.Conv2d(2, 2, 1)) for _ in range(4)]
    net = InvertibleSequential(*layers, anchors=0).to(dtype)
    x = torch.randn(1, 4, 3, 3, dtype=dtype)
    with pytest.raises(DriftError, match="do not step with"):
        net(x).square().mean().backward()
