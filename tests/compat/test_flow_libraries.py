"""Transforms of nflows, normflows and zuko as layers, and layers there."""

import importlib
import warnings

import pytest
import torch
from torch import nn

from invtorch import AffineCoupling, Householder1x1, InvertibleSequential
from invtorch.flows import (
    FromNflows,
    FromNormflows,
    FromTransform,
    FromZuko,
    ToNflows,
    ToNormflows,
    ToZuko,
)
from invtorch.testing import assert_gradients_match, assert_invertible, assert_log_det
from tests.parts import Conditioner
from tests.tolerances import assert_equal

pytestmark = [  # of nflows
    pytest.mark.filterwarnings("ignore:Inputs to the softmax are not scaled down"),
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated"),
]


def library(name: str):
    """Return a library, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its older Python
        return pytest.importorskip(name, reason=f"{name} is not installed")


class Network(nn.Module):
    """A conditioner for nflows, which gives it a context."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 5), nn.Tanh())
        self.last = nn.Linear(5, outputs)

    def forward(self, x, context=None):
        h = self.layers(x)
        return self.last(h if context is None else h * (1 + context / 2))


def nflows_layers():
    library("nflows")
    t = importlib.import_module("nflows.transforms")
    mask = [0, 1, 0, 1]
    yield t.AffineCouplingTransform(mask, Network)
    yield t.AdditiveCouplingTransform(mask, Network)
    yield t.PiecewiseRationalQuadraticCouplingTransform(
        mask, Network, num_bins=4, tails="linear", tail_bound=4.0
    )
    yield t.LULinear(4)
    yield t.HouseholderSequence(4, 3)
    yield t.ReversePermutation(4)
    yield t.CompositeTransform(
        [t.LULinear(4), t.AffineCouplingTransform(mask, Network)]
    )


def normflows_layers():
    nf = library("normflows")
    yield nf.flows.AffineCouplingBlock(Network(2, 4))
    yield nf.flows.LULinearPermute(4)
    yield nf.flows.CoupledRationalQuadraticSpline(4, 1, 6)


@pytest.mark.parametrize("maker", [nflows_layers, normflows_layers])
def test_layers_obey_the_laws(maker) -> None:
    adapter = FromNflows if maker is nflows_layers else FromNormflows
    for module in maker():
        layer = adapter(module.double())
        x = torch.randn(3, 4, dtype=torch.float64)
        assert_invertible(layer, x, rtol=1e-9)
        assert_log_det(layer, x, rtol=1e-9)
        assert_gradients_match(layer, x, rtol=1e-8, second_order=False)


def test_context_of_nflows() -> None:
    library("nflows")
    transforms = importlib.import_module("nflows.transforms")
    module = transforms.AffineCouplingTransform([0, 1, 0, 1], Network).double()
    x, c = torch.randn(3, 4).double(), torch.randn(3, 5).double().requires_grad_()
    layer = FromNflows(module)
    assert_equal(layer(x, c), module(x, context=c)[0])
    assert_gradients_match(layer, x, c)


def test_transforms_of_zuko() -> None:
    zuko = library("zuko")
    torch.manual_seed(0)
    flows = [
        zuko.flows.NICE(4, 2, transforms=2),
        zuko.flows.NSF(4, 2, transforms=1, bins=4),
        zuko.flows.MAF(4, 2, transforms=2),
    ]
    x, c = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2).double()
    for flow in flows:
        layer = FromZuko(flow.transform.double())
        assert_equal(layer(x, c), flow.transform(c)(x))
        assert_invertible(layer, x, c, rtol=1e-9)
        assert_log_det(layer, x, c, rtol=1e-9)
        assert_gradients_match(layer, x, c, rtol=1e-8, second_order=False)
    assert_invertible(FromTransform(zuko.transforms.SoftclipTransform(5.0)), x)


def net() -> InvertibleSequential:
    coupling = AffineCoupling(Conditioner(2, 4, 0), bound=1.5)
    return InvertibleSequential(Householder1x1(4), coupling)


def expected(network, x):
    """Return the log-probability of data under a network and a standard normal."""
    z, log_det = network.forward_and_log_det(x)
    base = torch.distributions.Normal(0.0, 1.0)
    return base.log_prob(z).sum(1) + log_det


def test_our_layers_in_a_flow_of_nflows() -> None:
    library("nflows")
    flows = importlib.import_module("nflows.flows")
    base = importlib.import_module("nflows.distributions").StandardNormal([4])
    ours, x = net(), torch.randn(3, 4)
    flow = flows.Flow(ToNflows(ours), base)
    assert_equal(flow.log_prob(x), expected(ours, x))
    assert flow.sample(5).shape == (5, 4)


def test_our_layers_in_a_flow_of_normflows() -> None:
    nf = library("normflows")
    ours, x = net(), torch.randn(3, 4)
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [ToNormflows(ours)])
    assert_equal(flow.log_prob(x), expected(ours, x))


def test_our_layers_in_a_flow_of_zuko() -> None:
    zuko = library("zuko")
    ours, x = net(), torch.randn(3, 4)
    normal = zuko.distributions.DiagNormal
    base = zuko.lazy.UnconditionalDistribution(normal, torch.zeros(4), torch.ones(4))
    flow = zuko.lazy.Flow([ToZuko(ours)], base)
    assert_equal(flow().log_prob(x), expected(ours, x))
    assert {*ours.parameters()} <= {*flow.parameters()}
