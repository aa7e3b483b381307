"""The modules inside of a layer may be exchanged, before and after a backward pass."""

import copy
import io

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


def exchanged_inside(layer) -> None:
    outer, inner = layer.conditioner, layer.conditioner[1]
    outer[0], inner[1] = inner[1], outer[0]


def moved_inward(layer) -> None:
    """The list of all modules stays as it is, but not what they are part of."""
    first, inner = layer.conditioner
    layer.conditioner = nn.Sequential(nn.Sequential(first, *inner), nn.Sequential())


def of_other_attributes(layer) -> None:
    layer.conditioner[0].__dict__ = copy.deepcopy(vars(layer.conditioner[0]))


class Twice(AdditiveCoupling):
    """Another class for a layer."""

    def _shift(self, *arguments):
        return 2 * super()._shift(*arguments)


def another_layer(layer) -> None:
    layer.__class__ = Twice


CHANGES = [
    *(replaced, replaced_inside, appended, removed, of_another_class),
    *(another_parameter, without_bias, with_an_attribute, with_an_attribute_renamed),
    *(exchanged_inside, moved_inward, of_other_attributes, another_layer),
]
BECOME_OTHERS = [of_another_class, of_other_attributes, another_layer]


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


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
@pytest.mark.parametrize("change", [c for c in CHANGES if c not in BECOME_OTHERS])
def test_what_changes_between_forward_and_backward(change, memory, trained) -> None:
    """The backward pass is that of the modules that the forward pass called."""
    results = []
    for options in ({"memory": memory, "guard": None}, {"memory": "store"}):
        net = network(anchors=0, **options).requires_grad_(trained)
        torch.manual_seed(2)
        x = sample(requires_grad=True)
        used = [x, *(p for p in net.parameters() if trained)]
        loss = weighed(net(x))
        torch.manual_seed(3)
        change(net[3])
        present = [[*part._modules.items()] for part in net.modules()]
        results.append(torch.autograd.grad(loss, used))
        assert [[*part._modules.items()] for part in net.modules()] == present
    assert_all_equal(*results)


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
@pytest.mark.parametrize("change", BECOME_OTHERS)
def test_modules_whose_class_changes_before_backward(change, memory) -> None:
    net = network(anchors=0, guard=None, memory=memory).requires_grad_(False)
    loss = weighed(net(sample(requires_grad=True)))
    change(net[3])
    with pytest.raises(RuntimeError, match=r"a module of layer 3 .* was replaced bet"):
        loss.backward()


class OfItsOwn(Conditioner):
    """It makes a part of itself in every call."""

    def forward(self, x):
        self.up = nn.Upsample(size=x.shape[2:])
        return self.up(super().forward(x))


class OfTheFirstCall(Conditioner):
    """It makes a part of itself when it is first called."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.up = None

    def forward(self, x):
        if self.up is None:
            self.up = nn.Upsample(size=x.shape[2:])
        return self.up(super().forward(x))


@pytest.mark.parametrize("make", [OfItsOwn, OfTheFirstCall])
def test_a_layer_that_makes_parts_of_itself(make) -> None:
    results = []
    for options in ({"anchors": 0}, {"memory": "store"}):
        net = network(**options)
        for layer in net[1::2]:
            layer.conditioner = make(2, 2).double()
        torch.manual_seed(2)
        results.append([t for _ in range(3) for t in gradients(net)])
    assert_all_equal(*results)


class AllAlike(Conditioner):
    """One that is equal to any other of its kind."""

    def __eq__(self, other):
        return isinstance(other, AllAlike)

    def __hash__(self):
        return 1


class LayersAlike(AdditiveCoupling):
    """A layer that is equal to any other of its kind."""

    __eq__ = AllAlike.__eq__
    __hash__ = AllAlike.__hash__


def test_modules_that_are_equal_are_not_the_same() -> None:
    results = []
    for options in ({"anchors": 0}, {"memory": "store"}):
        torch.manual_seed(1)
        layers = [LayersAlike(AllAlike(2, 2)) for _ in range(3)]
        net = alternating(layers, **options).double()
        results.append(gradients(net))
        net[1].conditioner = AllAlike(2, 2).double()
        results[-1] += gradients(net)
    assert_all_equal(*results)


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


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_attributes_deleted_before_backward_stay_deleted(memory) -> None:
    results = []
    for options in ({"anchors": 0, "memory": memory}, {"memory": "store"}):
        net, x = network(**options), sample(requires_grad=True)
        convolutions = [layer.conditioner[0].first for layer in net[1::2]]
        for convolution in convolutions:
            nn.utils.weight_norm(convolution)
            convolution.register_buffer("scale", torch.ones(1).double())
        wanted = [p for p in net.parameters() if p.ndim > 1]
        loss = weighed(net(x))
        for convolution in convolutions:
            nn.utils.remove_weight_norm(convolution)
            del convolution.scale
            del convolution.bias
        results.append([x.detach(), *torch.autograd.grad(loss, wanted)])
        assert all([*c._parameters] == ["weight"] for c in convolutions)
        assert not any(c._buffers for c in convolutions)
    assert_all_equal(*results)
