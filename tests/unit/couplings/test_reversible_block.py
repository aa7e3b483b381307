"""A reversible block evaluates its two networks in another order when it inverts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import AffineCoupling, InvertibleSequential, ReversibleBlock
from tests.parts import Conditioner, known
from tests.stacks import another_thread
from tests.strategies import anchors, directions, memories, network_seeds, weighed
from tests.tolerances import assert_all_equal

SPLITS = [None, "checkerboard"]


def sample() -> torch.Tensor:
    return torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)


def gradients(net, x, direction: str = "forward", second: bool = False):
    torch.manual_seed(1)
    inputs = [x, *net.parameters()]
    loss = weighed(getattr(net, direction)(x))
    found = torch.autograd.grad(loss, inputs, create_graph=second)
    if second:
        total = sum(g.square().sum() for g in found)
        found = torch.autograd.grad(total, inputs, materialize_grads=True)
    return found, torch.rand(1)


@pytest.mark.parametrize("split", SPLITS)
@given(
    *(network_seeds, memories, anchors, directions),
    *(st.booleans(), st.booleans(), st.booleans()),
)
def test_both_networks_may_draw(
    split, seed, memory, anchors, direction, second, between, threads
) -> None:
    torch.manual_seed(seed)
    size = 4 if split else 2
    layers = []
    for i in range(4):
        f, g = (Conditioner(size, size, 1, dropout=0.5) for _ in range(2))
        layers.append(ReversibleBlock(f, g, split=split))
        if between:
            layers.append(AffineCoupling(Conditioner(2, 4, 1, dropout=0.2 * (i % 2))))
    net, x = InvertibleSequential(*layers, anchors=anchors).double(), sample()
    for _ in range(2):  # the first calls learn that the layers draw
        net.memory = "store"
        expected, after = gradients(net, x, direction, second)
        net.memory = memory
        with another_thread(threads):
            found, after_replay = gradients(net, x, direction, second)
        assert_all_equal(found, expected)
        assert torch.equal(after, after_replay)


class Added(nn.Module):
    """A network whose gradients are the gradient of its output itself, or a view."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(2, 2, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "input and parameter":
            return x + self.weight
        return x if self.kind == "input" else self.weight.expand_as(x)


KINDS = st.sampled_from(["input", "parameter", "input and parameter"])


@given(
    st.lists(st.tuples(KINDS, KINDS), min_size=1, max_size=4),
    *(network_seeds, memories, directions, st.booleans()),
)
def test_gradients_may_share_memory(kinds, seed, memory, direction, needed) -> None:
    torch.manual_seed(seed)
    layers = [ReversibleBlock(Added(first), Added(second)) for first, second in kinds]
    net, x = InvertibleSequential(*layers, anchors=0).double(), sample()
    inputs = [x] * needed + list(net.parameters())
    found = []
    for net.memory in (memory, "store"):
        cotangent = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed))
        before = cotangent.double()
        given_to = before.clone()
        found.append(
            torch.autograd.grad(
                getattr(net, direction)(x), inputs, given_to, materialize_grads=True
            )
        )
        assert torch.equal(given_to, before)
    assert_all_equal(*found)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_one_network_twice_draws_each_time_what_it_drew(direction, threads) -> None:
    network = Conditioner(2, 2, 1, dropout=0.5)
    net = InvertibleSequential(*[ReversibleBlock(network, network)] * 2, anchors=0)
    found = []
    for memory in ("store", "invert"):
        net.double().memory = memory
        torch.manual_seed(0)
        with another_thread(threads):
            found.append(gradients(net, sample(), direction))
    assert_all_equal(found[1][0], found[0][0])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("deeper", [0, 1])
def test_networks_of_other_operations(split, deeper) -> None:
    size = 4 if split else 2
    networks = [known(size, size, 1), Conditioner(size, size, 1)]
    networks[1 - deeper] = nn.Sequential(networks[1 - deeper], nn.Tanh(), nn.Tanh())
    layers = [ReversibleBlock(*networks, split=split)] * 3
    net, x = InvertibleSequential(*layers, anchors=0).double(), sample()
    found, _ = gradients(net, x)
    net.memory = "store"
    assert_all_equal(found, gradients(net, x)[0])
