"""Attributes of modules, neither parameter nor buffer: read and written as in plain."""

import gc
import weakref
from collections import OrderedDict

import pytest
import torch

from invtorch import AdditiveCoupling
from tests.parts import Conditioner
from tests.stacks import alternating, both, parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

EXCHANGED = {
    "a tensor": {"mask": torch.full((1, 2, 1, 1), 0.3, dtype=torch.float64)},
    "a tensor that hardly differs": {"mask": torch.ones(1).double() + 1e-9},
    "a number": {"temperature": 0.5},
    "a switch": {"open": False},
}


class Switched(Conditioner):
    """A conditioner that reads a tensor, a number and a switch, and counts calls."""

    def __init__(self):
        super().__init__(2, 2)
        self.mask = torch.ones(1, dtype=torch.float64)
        self.temperature, self.open = 1.5, True
        self.count, self.penalty = 0, None

    def forward(self, x):
        self.count += 1
        h = super().forward(x) * self.mask / self.temperature
        self.penalty = h.square().sum()
        return h if self.open else h.detach()


def network(anchors: int, make=Switched, **options):
    layers = [AdditiveCoupling(make()) for _ in range(10)]
    return alternating(layers, anchors=anchors, **options).double()


def conditioners(net):
    return [layer.conditioner for layer in net[1::2]]


@pytest.mark.parametrize("guard", ["raise", None])
@pytest.mark.parametrize("what", sorted(EXCHANGED))
def test_what_is_exchanged_before_backward(anchors, guard, what) -> None:
    x = sample(requires_grad=True)

    def gradients(net):
        loss = weighed(net(x))
        vars(net[7].conditioner).update(EXCHANGED[what])
        return torch.autograd.grad(loss, [x, *parameters(net)])

    found, plain = network(anchors, guard=guard), network(0, memory="store")
    plain.load_state_dict(found.state_dict())
    assert_all_equal(gradients(found), gradients(plain))
    for name, value in EXCHANGED[what].items():
        assert getattr(found[7].conditioner, name) is value


def test_what_a_forward_pass_writes_is_written_once(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)

    def gradients():
        loss = weighed(net(x))
        found = torch.autograd.grad(loss, [x, *parameters(net)], retain_graph=True)
        penalty = sum(c.penalty for c in conditioners(net))
        return [*found, *torch.autograd.grad(penalty, [x, *parameters(net)])]

    found, plain = both(net, gradients)
    assert_all_equal(found, plain)
    assert {c.count for c in conditioners(net)} == {2}


class Open(Conditioner):
    """A conditioner with a buffer, which reads attributes that may not be there."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("scale", torch.full((), 0.7))
        self.register_forward_hook(lambda module, _, y: 1.5 * y)

    def forward(self, x):
        first = not hasattr(self, "seen")
        self.seen = True
        x = x * self.scale * getattr(self, "factor", 1.0)
        return super().forward(x) if first else -super().forward(x)


APPEARS = {
    "an attribute": {"factor": 3.0},
    "other hooks": {"_forward_hooks": OrderedDict()},
    "other buffers": {"_buffers": {"scale": torch.full((), 2.0).double()}},
}


@pytest.mark.parametrize("guard", ["raise", None])
@pytest.mark.parametrize("what", sorted(APPEARS))
def test_what_appears_before_backward_or_in_the_first_call(guard, what) -> None:
    results = []
    for options in ({"anchors": 0, "guard": guard}, {"anchors": 0, "memory": "store"}):
        torch.manual_seed(1)
        net = network(make=Open, **options).requires_grad_(False)
        x = sample(requires_grad=True)
        loss = weighed(net(x))
        vars(net[7].conditioner).update(APPEARS[what])
        results.append([x.detach(), *torch.autograd.grad(loss, x)])
        for name, value in APPEARS[what].items():
            assert getattr(net[7].conditioner, name) is value
        assert all(c.seen for c in conditioners(net))
    assert_all_equal(*results)


class Cached(Conditioner):
    """A conditioner that computes a weight when it is first called."""

    def __init__(self):
        super().__init__(2, 2)
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.second.bias.tanh().view(1, 2, 1, 1)
        return super().forward(x) * self.kept


def test_a_weight_that_the_first_call_computes(anchors) -> None:
    net, x = network(anchors, Cached), sample(requires_grad=True)

    def gradients():
        for conditioner in conditioners(net):
            conditioner.kept = None
        return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


class Counted(Conditioner):
    """A conditioner that counts in a tensor that is no buffer."""

    def __init__(self):
        super().__init__(2, 2)
        self.count = torch.zeros(1)

    def forward(self, x):
        self.count += 1
        return super().forward(x)


def test_a_tensor_that_a_layer_changes_in_place() -> None:
    with pytest.raises(RuntimeError, match=r"layer 1 .* its attribute count .*buffer"):
        network(0, Counted)(sample())


@pytest.mark.parametrize("guard", ["raise", None])
def test_a_tensor_that_is_changed_in_place_before_backward(guard) -> None:
    net = network(0, guard=guard)
    loss = weighed(net(sample()))
    net[7].conditioner.mask.mul_(1 + 1e-9)
    with pytest.raises(RuntimeError, match=r"mask of layer 7 .*modified in place"):
        loss.backward()


def test_a_pass_keeps_nothing_of_the_pass_before() -> None:
    net, witnesses = network(0), []
    for _ in range(3):
        y = net(sample(requires_grad=True))
        witnesses.append(weakref.ref(net[7].conditioner.penalty))
    gc.collect()
    assert [w() is None for w in witnesses] == [True, True, False]
    assert y.requires_grad


class Moving(Conditioner):
    """A conditioner that reads an average, exchanged in every call for a new one."""

    def __init__(self):
        super().__init__(2, 2)
        self.average = torch.zeros(1)

    def forward(self, x):
        y = super().forward(x)
        self.average = 0.9 * self.average + 0.1 * y.detach().mean()
        return y * (1 - self.average)


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_a_tensor_that_is_exchanged_in_every_call(anchors, memory) -> None:
    x = sample(requires_grad=True)
    results = []
    for options in ({"anchors": anchors, "memory": memory}, {"memory": "store"}):
        torch.manual_seed(1)
        net = network(make=Moving, **{"anchors": 0, **options})
        for _ in range(2):
            found = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        results.append([*found, *[c.average for c in conditioners(net)]])
    assert_all_equal(*results)
