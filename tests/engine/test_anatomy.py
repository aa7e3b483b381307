"""What a layer is made of is remembered from pass to pass, and seen when it changes."""

import copy
import io
import weakref

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling
from tests.parts import Conditioner
from tests.stacks import alternating, parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


class Slope(nn.Module):
    """A part that may be put in, and has an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.power = 1

    def forward(self, x):
        return x * self.weight**self.power


def conditioner() -> nn.Sequential:
    return nn.Sequential(Conditioner(2, 2), nn.Sequential(nn.Tanh(), Conditioner(2, 2)))


def replaced(layer) -> None:
    layer.conditioner = conditioner()


def replaced_inside(layer) -> None:
    layer.conditioner[1][1].first = nn.Conv2d(2, 4, 1)


def appended(layer) -> None:
    layer.conditioner[1].append(Slope())


def removed(layer) -> None:
    del layer.conditioner[1][0]


def of_another_class(layer) -> None:
    layer.conditioner[1][0].__class__ = nn.Sigmoid


def another_parameter(layer) -> None:
    layer.conditioner[0].first.weight = nn.Parameter(torch.ones(4, 2, 3, 3))


def without_bias(layer) -> None:
    layer.conditioner[0].first.bias = None


def with_an_attribute(layer) -> None:
    part = layer.conditioner[0]
    part.scale = torch.full((), 0.3)
    part.register_forward_hook(lambda module, _, y: y * module.scale)


def with_an_attribute_renamed(layer) -> None:
    part = layer.conditioner[1][0]
    part.fresh = 2.0
    part.register_forward_hook(lambda module, _, y: y * vars(module).get("old", 3.0))
    del part.fresh
    part.old = 2.0


CHANGES = [
    *(replaced, replaced_inside, appended, removed, of_another_class),
    *(another_parameter, without_bias, with_an_attribute, with_an_attribute_renamed),
]


def network(**options):
    torch.manual_seed(1)
    layers = [AdditiveCoupling(conditioner()) for _ in range(3)]
    return alternating(layers, **options).double()


def gradients(net):
    x = sample(requires_grad=True)
    found = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
    return [x.detach(), *found]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_passes(change) -> None:
    results = []
    for options in ({"anchors": 0}, {"memory": "store"}):
        net = network(**options)
        torch.manual_seed(2)
        gradients(net)
        for layer in net[1::2]:
            change(layer)
        net.double()
        torch.manual_seed(2)
        results.append(gradients(net))
    assert_all_equal(*results)


def test_a_parameter_exchanged_between_forward_and_backward() -> None:
    """The backward pass is that of the parameters of the forward pass."""
    results = []
    for options in ({"anchors": 0}, {"memory": "store"}):
        net = network(**options)
        torch.manual_seed(2)
        x = sample(requires_grad=True)
        used = [x, *parameters(net)]
        loss = weighed(net(x))
        another_parameter(net[1])
        results.append(torch.autograd.grad(loss, used))
    assert_all_equal(*results)


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
@pytest.mark.parametrize(
    "change", [replaced, replaced_inside, appended, removed, of_another_class]
)
def test_a_module_exchanged_between_forward_and_backward(change, memory) -> None:
    net = network(anchors=0, guard=None, memory=memory)
    net.requires_grad_(False)
    loss = weighed(net(sample(requires_grad=True)))
    change(net[3])
    net.double().requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"inside of layer 3 .* was exchanged, add"):
        loss.backward()


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_file])
def test_a_copy_knows_its_own_modules(copied) -> None:
    net = network(anchors=0)
    before = gradients(net)
    twin = copied(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    torch.manual_seed(1)
    sample()  # as before the first pass
    x = before[0].clone().requires_grad_()
    found = torch.autograd.grad(weighed(twin(x)), [x, *parameters(twin)])
    assert_all_equal(found, before[1:])


def test_a_layer_that_was_removed_is_forgotten() -> None:
    net = network(anchors=0)
    gradients(net)
    layer = weakref.ref(net[-1])
    part = weakref.ref(net[-1].conditioner[1][1])
    del net[-1]
    assert layer() is None
    assert part() is None
