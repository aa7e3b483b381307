"""A context is what it was in the forward pass, and lives no longer than it must."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.stacks import both, parameters
from tests.tolerances import assert_all_equal


class Reads(nn.Linear):
    """A conditioner that reads `context["c"]`, and `context["on"]` if it is there."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x, context):
        h = torch.tanh(super().forward(x)) * context["c"]
        return h if context.get("on", True) else h.detach()


def network(anchors: int = 0, depth: int = 3, make=Reads):
    layers = [AdditiveCoupling(make()) for _ in range(depth)]
    return InvertibleSequential(*layers, anchors=anchors).double()


def values(*shape, **options):
    return torch.randn(*shape, dtype=torch.float64, **options)


def test_a_switch_that_is_turned_before_backward(anchors) -> None:
    net, x, c = network(anchors), values(3, 4), values(3, 2)

    def gradients():
        h, context = x.clone().requires_grad_(), {"c": c, "on": False}
        y = net(h, context)
        context["on"] = True
        loss = (y + net(h, context)).square().sum()
        return torch.autograd.grad(loss, [h, *parameters(net)])

    assert_all_equal(*both(net, gradients))


@pytest.mark.parametrize("guard", [None, "raise"])
def test_a_dictionary_that_is_filled_anew_for_every_call(guard, anchors) -> None:
    net, x, first = network(anchors), values(3, 4), values(3, 2)
    net.guard = guard

    def gradients():
        c, context, y = first.clone().requires_grad_(), {}, x
        for i in range(3):
            context["c"] = c * (i + 1)
            y = net(y, context)
        return torch.autograd.grad(y.square().sum(), [c, *parameters(net)])

    assert_all_equal(*both(net, gradients))


class Hands(nn.Linear):
    """A conditioner that leaves something in the context for the next layer."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x, context):
        h = torch.tanh(super().forward(x) + context.get("before", 0.0))
        context["before"] = h
        return h


def test_a_dictionary_that_layers_write_into(anchors) -> None:
    net, x = network(anchors, depth=10, make=Hands), values(3, 4)

    def gradients():
        h = x.clone().requires_grad_()
        return torch.autograd.grad(net(h, {}).square().sum(), [h, *parameters(net)])

    assert_all_equal(*both(net, gradients))


@dataclass(frozen=True)
class Scan:
    """A context of several tensors and a word."""

    c: Tensor
    others: tuple[Tensor, ...] = ()
    name: str = "a scan"


class ReadsScan(nn.Linear):
    """A conditioner that reads a dataclass."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x, scan):
        assert scan.name == "a scan"
        return torch.tanh(super().forward(x)) * scan.c * scan.others[0]


def test_a_dataclass(anchors) -> None:
    net, x, raw = network(anchors, make=ReadsScan), values(3, 4), values(3, 2)

    def gradients():
        c = raw.clone().requires_grad_()
        y = net(x, Scan(c.sin(), (c.cos(),)))
        return torch.autograd.grad(y.square().sum(), [c, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_a_tensor_of_a_dataclass_that_changes() -> None:
    net, scan = network(make=ReadsScan), Scan(values(3, 2), (values(3, 2),))
    loss = net(values(3, 4), scan).sum()
    scan.others[0].mul_(1 + 1e-9)
    with pytest.raises(RuntimeError, match=r"context of layer 2 .*modified in place"):
        loss.backward()


def test_an_output_that_joins_its_context_is_freed(anchors) -> None:
    net, witnesses = network(anchors), []
    for _ in range(3):
        batch = {"c": values(3, 2)}
        batch["y"] = net(values(3, 4), batch)
        batch["y"].sum().backward()
        witnesses.append(weakref.ref(batch["c"]))
    del batch
    gc.collect()
    assert [w() for w in witnesses] == [None] * 3


def test_a_loss_that_is_kept_keeps_no_context(anchors) -> None:
    net, batch = network(anchors), {"c": values(3, 2)}
    loss = net(values(3, 4), batch).sum()
    loss.backward()
    witness = weakref.ref(batch["c"])
    del batch
    gc.collect()
    assert witness() is None
    assert loss.grad_fn is not None
