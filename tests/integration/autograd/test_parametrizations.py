"""Parametrized weights are computed anew in every replay, connected to their roots."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from invtorch import AdditiveCoupling, InvertibleSequential, OrthogonalCoupling
from tests.parts import Conditioner
from tests.stacks import alternating, both, parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

WAYS = {"weight_norm": weight_norm, "orthogonal": orthogonal}


def network(way: str, anchors: int) -> InvertibleSequential:
    layers = []
    for i in range(10):
        conditioner = Conditioner(2, 2)
        for module in (conditioner.first, conditioner.second):
            WAYS[way](module)
        layers.append(
            OrthogonalCoupling(conditioner, channels=4)
            if i % 2
            else AdditiveCoupling(conditioner)
        )
    return InvertibleSequential(*layers, anchors=anchors).double()


@pytest.mark.parametrize("way", sorted(WAYS))
def test_gradients(way, anchors) -> None:
    net, x = network(way, anchors), sample(requires_grad=True)

    def gradients():
        return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_second_order(anchors) -> None:
    net, x = network("weight_norm", anchors), sample(requires_grad=True)

    def second_order():
        inputs = [x, *parameters(net)]
        first = torch.autograd.grad(weighed(net(x)), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    assert_all_equal(*both(net, second_order))


@pytest.mark.parametrize("backward_inside", [True, False])
def test_cached_weights(anchors, backward_inside) -> None:
    net, x = network("weight_norm", anchors), sample()
    net.append(net[0])

    def gradients():
        with parametrize.cached():
            loss = weighed(net(x)) + weighed(net[0](x))
            if backward_inside:
                return torch.autograd.grad(loss, parameters(net))
        return torch.autograd.grad(loss, parameters(net))

    assert_all_equal(*both(net, gradients))


def test_a_weight_that_a_power_iteration_moves(anchors) -> None:
    """Spectral norm changes its buffers in every training forward, and only there."""
    layers = []
    for _ in range(10):
        conditioner = Conditioner(2, 2)
        nn.utils.parametrizations.spectral_norm(conditioner.second)
        layers.append(AdditiveCoupling(conditioner))
    net = alternating(layers, anchors=anchors).double()
    initial = {k: v.clone() for k, v in net.state_dict().items()}
    x = sample(requires_grad=True)

    def gradients_and_buffers():
        net.load_state_dict(initial)
        found = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        return [*found, *[b.clone() for b in net.buffers()]]

    assert_all_equal(*both(net, gradients_and_buffers))
