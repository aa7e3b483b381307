"""Autocast and loss scaling: a replay computes in the precision of the forward pass."""

import copy

import pytest
import torch
from torch import nn

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    InvertibleSequential,
    OrthogonalCoupling,
)
from tests.devices import DEVICE
from tests.parts import Conditioner, Scale
from tests.stacks import both, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import relative_error


def autocast(dtype=torch.bfloat16, **options):
    return torch.autocast(DEVICE, dtype=dtype, **options)


def seen_dtypes(net) -> list[torch.dtype]:
    """Return a list that fills with the dtypes of every convolution's output."""
    seen: list[torch.dtype] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_replay_outside_of_autocast_computes_in_the_dtypes_of_the_forward(
    anchors, dtype
) -> None:
    net, x = stack(anchors).float(), sample().float()
    seen = seen_dtypes(net)
    with autocast(dtype):
        loss = net(x).float().square().sum()
    loss.backward()
    assert len(seen) == 2 * 2 * len(net)
    assert set(seen) == {dtype}


def test_a_replay_inside_of_autocast_of_a_forward_outside(anchors) -> None:
    net, x = stack(anchors).float(), sample().float()
    seen = seen_dtypes(net)
    loss = net(x).square().sum()
    with autocast():
        loss.backward()
    assert set(seen) == {torch.float32}


def test_a_float32_state_stays_float32(anchors) -> None:
    block = GatedResidualBlock(2, 2, hidden=4)
    layers = [
        OrthogonalCoupling(block, channels=4),
        AdditiveCoupling(Conditioner(2, 2)),
        Scale(4),
    ]
    net = InvertibleSequential(*layers, anchors=anchors)
    states: list[torch.dtype] = []
    for layer in net:
        layer.register_forward_hook(lambda *args: states.append(args[-1].dtype))
    with autocast():
        net(sample().float())
        net.inverse(sample().float())
    assert set(states) == {torch.float32}


def total_error(values, references) -> float:
    flat = [
        torch.cat([t.double().flatten() for t in ts]) for ts in (values, references)
    ]
    return relative_error(*flat)


def assert_as_exact_as_autograd(net, loss, inputs) -> None:
    """Compare errors against float64 of the two ways to compute in half precision."""

    def gradients():
        with autocast():
            value = loss(net)
        return torch.autograd.grad(value, inputs(net))

    inverted, stored = both(net, gradients)
    exact = copy.deepcopy(net).double()
    exact.memory = "store"
    reference = torch.autograd.grad(loss(exact), inputs(exact))
    error = total_error(stored, reference)
    assert 1e-4 < error < 0.2
    assert total_error(inverted, reference) < 1.2 * error + 1e-4


def test_gradients_under_autocast_are_as_exact_as_those_of_autograd(anchors) -> None:
    x = sample()

    def loss(net):
        return net(x.to(net[3].vectors.dtype)).square().sum()

    assert_as_exact_as_autograd(stack(anchors).float(), loss, parameters)


def test_weights_that_autocast_casts_are_not_cached_without_a_graph(anchors) -> None:
    """A weight cast in the forward pass must not be found in the cache by a replay."""
    x = sample()

    def loss(net):
        inside = x.to(net[3].vectors.dtype)
        return net(inside).square().sum() + 50 * net[0](inside).sum()

    net = stack(anchors).float()
    assert_as_exact_as_autograd(net, loss, parameters)
    assert_as_exact_as_autograd(net, loss, lambda net: list(net[0].parameters()))


def test_grad_scaler(anchors) -> None:
    x = sample().float()

    def trained(memory: str):
        torch.manual_seed(0)
        net = stack(anchors).float()
        net.memory = memory
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            with autocast(torch.float16):
                loss = net(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return [p.detach() for p in net.parameters()]

    for found, expected in zip(trained("invert"), trained("store"), strict=True):
        assert relative_error(found, expected, least=0.1) < 1e-3


def test_grad_scaler_sees_an_overflow_in_any_layer(anchors) -> None:
    net = stack(anchors).float()
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in net.parameters()]
    scaler.scale(net(sample().float()).square().sum() * 1e36).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**10
    assert all(map(torch.equal, before, net.parameters()))


def test_second_order_under_autocast(anchors) -> None:
    """Plain autograd's to 5 %, or to twice its own error where that is more."""
    net, x = stack(anchors).float(), sample().float().requires_grad_()

    def second_order(dtype=torch.float32, enabled=True):
        net.to(dtype)
        with autocast(enabled=enabled):
            loss = weighed(net(x.to(dtype)).double())
        inputs = [x, *parameters(net)]
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    found, expected = both(net, second_order)
    exact = second_order(torch.float64, enabled=False)
    for one, other, truth in zip(found, expected, exact, strict=True):
        allowed = 2 * relative_error(other, truth, least=1.0)
        assert relative_error(one, other, least=1.0) < max(5e-2, allowed)
