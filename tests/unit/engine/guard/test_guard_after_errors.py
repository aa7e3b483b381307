"""What is left of a backward pass that failed neither blames nor spoils the next."""

import pytest
import torch

from invtorch import DriftError, InvertibleSequential
from tests.parts import Scale
from tests.tolerances import assert_all_equal


@pytest.fixture
def shift(monkeypatch):
    """Return what sets a number that layers read from outside."""
    outside = {"by": 1.0}

    class Shifts(Scale):
        def forward(self, x):
            return super().forward(x) + outside["by"]

        def inverse(self, y):
            return super().inverse(y - outside["by"])

    Shifts.set = staticmethod(lambda by: monkeypatch.setitem(outside, "by", by))
    return Shifts


def broken_off(net, loss, at, layer) -> None:
    """Let a backward pass fail, and with another number rebuild wrong states."""

    def stop(_):
        raise OSError("no such luck")

    hook = at.register_hook(stop)
    layer.set(1.5)
    with pytest.raises(OSError, match="no such luck"):
        loss.backward(retain_graph=True)
    layer.set(1.0)
    hook.remove()
    net.zero_grad()


def network(shift):
    net, inner = InvertibleSequential(*[shift(4, 0) for _ in range(6)], anchors=0), []
    for layer in net:
        layer.register_forward_hook(lambda _, __, output: inner.append(output))
    x = torch.randn(3, 4, requires_grad=True)
    loss = net.double()(x.double()).square().sum()
    return net, x, inner, loss


def test_a_pass_that_failed_leaves_no_report_for_the_next(shift) -> None:
    net, x, inner, loss = network(shift)
    broken_off(net, loss, inner[2], shift)
    inputs = [x, *net.parameters()]
    found = torch.autograd.grad(loss, inputs, retain_graph=True)
    net.memory = "store"
    assert_all_equal(found, torch.autograd.grad(net(x.double()).square().sum(), inputs))


@pytest.mark.parametrize("end", [1, 2])  # what layer 0 receives is not rebuilt
def test_states_rebuilt_by_a_failed_pass_are_checked_again(end, shift) -> None:
    net, _, inner, loss = network(shift)
    broken_off(net, loss, inner[2], shift)
    with pytest.raises(DriftError):
        inner[end].square().sum().backward()
