"""Whatever a module holds, and wherever, gradients are those of plain autograd.

A convolution may have its bias as a buffer, share a weight with another one, or have a
parameter of integers. A closed form reads tensors from where PyTorch puts them, so it
must not be taken for a module that keeps one of them elsewhere.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.parts import Conditioner
from tests.stacks import (
    alternating,
    both,
    chained,
    closed_form_network,
    gated,
    gradients_of,
    sample,
)
from tests.tolerances import assert_all_equal


class Twice(nn.Module):
    """A parametrization that doubles."""

    def forward(self, weight):
        return 2 * weight


def to_buffer(module: nn.Module, name: str) -> None:
    value = getattr(module, name).detach().clone()
    delattr(module, name)
    module.register_buffer(name, value)


def to_attribute(module: nn.Module, name: str) -> None:
    value = getattr(module, name).detach().clone()
    delattr(module, name)
    setattr(module, name, value)


def to_none(module: nn.Module, name: str) -> None:
    if name == "bias" and isinstance(module, nn.Conv2d):
        module.register_parameter("bias", None)


def frozen(module: nn.Module, name: str) -> None:
    getattr(module, name).requires_grad_(False)


def replaced(module: nn.Module, name: str) -> None:
    value = getattr(module, name)
    setattr(module, name, nn.Parameter(torch.randn_like(value)))


def parametrized(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, Twice())


def shared(module: nn.Module, name: str) -> None:
    """Let all channels read the same parameter by another name, too."""
    module.register_parameter("again", getattr(module, name))


def with_integers(module: nn.Module, name: str) -> None:
    count = nn.Parameter(torch.arange(3), requires_grad=False)
    module.register_parameter("count", count)


ALTERATIONS = [
    *(to_buffer, to_attribute, to_none, frozen, replaced, parametrized, shared),
    with_integers,
]


def opaque(half: int) -> nn.Module:
    """Return a conditioner that has no closed form."""
    return Conditioner(half, half)


def integers_first(net: InvertibleSequential) -> None:
    """Let the first parameter of every conditioner be one of integers."""
    for layer in net:
        conditioner = getattr(layer, "conditioner", None)
        if conditioner is not None:
            with_integers(conditioner, "")


@st.composite
def networks(draw: st.DrawFn) -> InvertibleSequential:
    """Draw a network of couplings, some modules of which are altered."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    block = draw(st.sampled_from([chained, gated, opaque]))
    net = closed_form_network(draw(st.sampled_from([0, 3])), block)
    if draw(st.booleans()):
        integers_first(net)
    for _ in range(draw(st.integers(1, 3))):
        places = [
            (part, name)
            for part in net.modules()
            for name in ("weight", "bias")
            if isinstance(vars(part)["_parameters"].get(name), nn.Parameter)
        ]
        draw(st.sampled_from(ALTERATIONS))(*draw(st.sampled_from(places)))
    return net


@given(networks())
def test_gradients_equal_plain_autograd(net) -> None:
    x = sample(requires_grad=True)
    assert_all_equal(*both(net, gradients_of(net, x)))


@given(networks())
def test_outputs_equal_plain_autograd(net) -> None:
    x = sample(requires_grad=True)
    expected, found = both(net, lambda: [net(x).detach()])
    assert_all_equal(expected, found)


def test_a_bias_that_is_a_buffer_is_added(recorded_calls) -> None:
    net, x = closed_form_network(0, chained), sample(requires_grad=True)
    to_buffer(net[2].conditioner[0], "bias")
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert recorded_calls.count(None) == 1


def test_a_first_parameter_of_integers_sets_no_precision() -> None:
    net = alternating([AdditiveCoupling(opaque(2)) for _ in range(3)]).double()
    integers_first(net)
    x = sample(requires_grad=True)
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert torch.autograd.grad(net(x).sum(), x)[0].ne(1).any()
