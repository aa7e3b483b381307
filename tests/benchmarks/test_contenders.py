"""What the benchmarks compare computes the gradients of plain autograd."""

import importlib.util
import sys

import pytest
import torch
from torch import Tensor

from benchmarks.contenders import CONTENDERS, plain, runners, step
from benchmarks.figures import COLORS
from benchmarks.networks import (
    ConvolutionalBlock,
    Maker,
    additive,
    algebraic,
    block,
    conjugated,
)
from benchmarks.peers import PACKAGES, versions
from benchmarks.time import PAPER
from invtorch import InvertibleSequential

CHANNELS, HIDDEN, SIZE, DEPTH = 8, 6, 8, 6
NETWORKS = {"algebraic": algebraic, "conjugated": conjugated, "additive": additive}
PEERS = [("MemCNN", algebraic), ("MemCNN", additive), ("revlib", additive)]


def sample(maker: Maker) -> tuple[InvertibleSequential, Tensor]:
    net = maker(CHANNELS, HIDDEN, DEPTH).double()
    return net, torch.randn(2, CHANNELS, SIZE, SIZE, dtype=torch.float64)


def alternating(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Couple as the peers do: the halves take turns."""
    still, moving = x.chunk(2, dim=1)[::-1]
    for layer in net:
        still, moving = moving + layer.conditioner(still), still
    return torch.cat([moving, still], dim=1)


def gradients(run, net: InvertibleSequential, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    step(run, x)
    return [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("maker", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("name", CONTENDERS)
def test_our_contenders_compute_the_gradients_of_plain_autograd(name, maker) -> None:
    net, x = sample(maker)
    truth = gradients(lambda x: plain(net, x), net, x)
    torch.testing.assert_close(gradients(runners(net)[name], net, x), truth)


@pytest.mark.parametrize(("name", "maker"), PEERS)
def test_peers_compute_the_gradients_of_plain_autograd(name, maker) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{name} is not installed")
    net, x = sample(maker)
    before = x.clone()
    run = runners(net)[name]
    reference = alternating if maker is additive else plain
    truth = gradients(lambda x: reference(net, x), net, x)
    for _ in range(2):
        torch.testing.assert_close(gradients(run, net, x), truth)
    torch.testing.assert_close(run(x).detach(), reference(net, x).detach())
    assert torch.equal(x, before), "the contenders after it are given another input"


def test_without_the_peers_the_benchmarks_leave_them_out(monkeypatch) -> None:
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, None)  # its import fails
    net, _ = sample(additive)
    assert list(runners(net)) == list(CONTENDERS)
    assert versions() == dict.fromkeys(PACKAGES)


@pytest.mark.parametrize("maker", NETWORKS.values(), ids=NETWORKS)
def test_all_that_take_part_can_run_the_network(maker) -> None:
    net, x = sample(maker)
    for run in runners(net).values():
        step(run, x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("index", range(4), ids=["1", "2", "4", "8"])
def test_the_block_of_convolutions_is_the_block_of_the_library(index, dims) -> None:
    ours = block(CHANNELS, HIDDEN, index, dims).double()
    theirs = ConvolutionalBlock(CHANNELS, HIDDEN, index, dims).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, CHANNELS // 2, *(SIZE,) * dims, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize("maker", NETWORKS.values(), ids=NETWORKS)
def test_networks_have_as_many_axes_as_they_are_told(maker) -> None:
    net = maker(CHANNELS, HIDDEN, 2, 3)
    x = torch.randn(1, CHANNELS, *(SIZE,) * 3)
    assert net(x).shape == x.shape


def test_every_contender_has_a_color_of_its_own() -> None:
    assert set(COLORS) == {*CONTENDERS, *PACKAGES, *PAPER}
    assert len(set(COLORS.values())) == len(COLORS)
