"""One evaluation of the inner network in backward, for every layer we ship."""

from collections import Counter

import pytest
import torch

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from tests.parts import Conditioner, Scale
from tests.registry import MAKERS, PAIR_MAKERS, SHIPPED, fitted

ALL = MAKERS | PAIR_MAKERS
WITH_CONDITIONER = [
    name
    for name, make in ALL.items()
    if (name in MAKERS or name in SHIPPED.values())  # others need no replay
    and any(isinstance(m, Conditioner) for m in make(4, 2).modules())
]


def evaluations(net) -> int:
    conditioners = (m for m in net.modules() if isinstance(m, Conditioner))
    return sum(m.evaluations for m in conditioners)


@pytest.mark.parametrize("name", WITH_CONDITIONER)
@pytest.mark.parametrize("anchors", [0, 2])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("suffix", ["", "_and_log_det"])
def test_a_step_evaluates_every_conditioner_twice(
    name, anchors, direction, suffix
) -> None:
    net = InvertibleSequential(*[ALL[name](4, 2) for _ in range(6)], anchors=anchors)
    x = torch.randn(1, 4, *fitted(name, 5, 5))
    state = (x, torch.randn_like(x)) if name in PAIR_MAKERS else x
    call = getattr(net, direction + suffix)
    with torch.no_grad():
        call(state)
    once = evaluations(net)
    assert once >= sum(isinstance(m, Conditioner) for m in net.modules())
    output = call(state)
    assert evaluations(net) == 2 * once
    output = output[0] if suffix else output
    first = output[0] + output[1] if name in PAIR_MAKERS else output
    first.sum().backward()
    assert evaluations(net) == 3 * once


@pytest.mark.parametrize("anchors", [0, 2])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_step_of_the_paper_s_layer_evaluates_every_block_twice(
    anchors, direction
) -> None:
    blocks = [GatedResidualBlock(2, 2, hidden=3, stride=2) for _ in range(6)]
    layers = [OrthogonalCoupling(block, channels=4) for block in blocks]
    calls = Counter()
    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, i=i: calls.update([i]))
    net = InvertibleSequential(*layers, anchors=anchors)
    output = getattr(net, direction)(torch.randn(1, 4, 5, 5))
    assert calls == Counter(range(6))
    output.sum().backward()
    assert calls == Counter(2 * [*range(6)])


def test_the_registry_has_layers_with_a_conditioner() -> None:
    assert len(WITH_CONDITIONER) >= 5


def test_a_layer_without_replay_is_inverted_and_evaluated_again() -> None:
    calls = []

    class Traced(Scale):
        def forward(self, x):
            calls.append("forward")
            return super().forward(x)

        def inverse(self, y):
            calls.append("inverse")
            return super().inverse(y)

    net = InvertibleSequential(Traced(4), Traced(4), anchors=0)
    net(torch.randn(1, 4, 3, 3)).sum().backward()
    # the input of the first layer is kept
    assert calls == ["forward"] * 2 + ["inverse", "forward", "forward"]
