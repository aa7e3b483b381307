"""What a layer does on its own: it differentiates, keeps things, starts late."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import grad

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
)
from tests.parts import Conditioner
from tests.stacks import DEPTH, both, mixed, parameters, sample, stack
from tests.tolerances import assert_all_equal


def differentiated(net, loss):
    """Return the gradients of input and parameters of `loss(net, y)`."""
    x = sample(requires_grad=True)
    wanted = [x, *parameters(net)]
    return grad(loss(net, net(x)), wanted, allow_unused=True)


class Force(nn.Module):
    """A conditioner that is the gradient of an energy, taken in the forward pass."""

    def __init__(self, enable: bool):
        super().__init__()
        self.energy = Conditioner(2, 1)
        self.enable = enable

    def forward(self, x, *_):
        if not self.enable:
            return grad(self.energy(x).sum(), x, create_graph=True)[0]
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return grad(self.energy(x).sum(), x, create_graph=True)[0]


class Kick(InvertibleModule):
    """A layer of a tuple state that differentiates detached values."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def force(self, q):
        with torch.enable_grad():
            z = q.detach().requires_grad_()
            return grad(z.tanh().sum(), z)[0]

    def forward(self, state):
        q, p = state
        return p + self.weight * self.force(q), q

    def inverse(self, state):
        p, q = state
        return q, p - self.weight * self.force(q)


@pytest.mark.parametrize("anchors", [0, 8])
def test_conditioners_that_are_gradients(anchors) -> None:
    net = mixed(lambda: Force(enable=True), anchors)
    found, expected = both(net, lambda: differentiated(net, lambda _, y: y.sin().sum()))
    assert_all_equal(found, expected)


@pytest.mark.parametrize("anchors", [0, 8])
def test_a_layer_that_differentiates_on_its_own(anchors) -> None:
    layers = [Kick() for _ in range(DEPTH)]
    net = InvertibleSequential(*layers, anchors=anchors).double()

    def call():
        q, p = net((sample(), sample()))
        return (q.detach(), p.detach(), *grad((q * p).sum(), parameters(net)))

    found, expected = both(net, call)
    assert_all_equal(found, expected)


class Penalized(Conditioner):
    """A conditioner that keeps something of its forward pass for the loss."""

    def forward(self, x, *context):
        y = super().forward(x, *context)
        self.penalty = y.square().mean()
        return y


@pytest.mark.parametrize("memory", ["invert", "checkpoint", "offload"])
@pytest.mark.parametrize("anchors", [0, 8])
def test_auxiliary_losses_inside_of_conditioners(memory, anchors) -> None:
    net = mixed(lambda: Penalized(2, 2), anchors)

    def loss(net, y):
        penalties = [layer.conditioner.penalty for layer in net[::2]]
        return y.sin().sum() + 10 * sum(penalties)

    results = []
    for strategy in (memory, "store"):
        net.memory = strategy
        torch.manual_seed(1)
        results.append(differentiated(net, loss))
    assert_all_equal(*results)


@pytest.mark.parametrize("anchors", [0, 8])
def test_auxiliary_losses_through_hooks_on_submodules(anchors) -> None:
    net = mixed(lambda: Conditioner(2, 2), anchors)
    kept: list[torch.Tensor] = []
    net[6].conditioner.first.register_forward_hook(lambda *call: kept.append(call[2]))

    def loss(_, y):
        return y.sin().sum() + 10 * kept.pop(0).square().mean()

    def call():
        kept.clear()
        return differentiated(net, loss)

    found, expected = both(net, call)
    assert_all_equal(found, expected)


def test_unreferenced_tensors_of_the_forward_pass_are_freed() -> None:
    net, seen = mixed(lambda: Conditioner(2, 2), 0), []
    hook = lambda *call: seen.append(torch.utils.weak.TensorWeakRef(call[2]))  # noqa: E731
    net[6].conditioner.first.register_forward_hook(hook)
    y = net(sample(requires_grad=True))
    gc.collect()
    assert y.requires_grad
    assert seen[0]() is None


class Frozen(AdditiveCoupling):
    """A subclass that writes a direction anew and knows nothing of replays."""

    def forward(self, x, *context):
        return super().forward(x, *(c.detach() for c in context))


@pytest.mark.parametrize("anchors", [0, 8])
def test_a_subclass_that_overrides_a_direction(anchors) -> None:
    torch.manual_seed(0)
    layers = []
    for _ in range(DEPTH):
        layers += [Frozen(Conditioner(2, 2)), Householder1x1(4)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    assert net[0].replay is None

    def call():
        x = sample(requires_grad=True)
        context = sample(1, requires_grad=True)
        wanted = [x, context, *parameters(net)]
        return grad(net(x, context).sin().sum(), wanted, allow_unused=True)

    found, expected = both(net, call)
    assert found[1] is None
    assert_all_equal(found, expected)


class Aliased(Conditioner):
    """A conditioner that reads a parameter through a list of its own."""

    def __init__(self):
        super().__init__(2, 2)
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.others = [self.gain]

    def forward(self, x, *context):
        return super().forward(x, *context) * self.others[0]


@pytest.mark.parametrize("hooked", [False, True])
def test_a_parameter_read_through_another_reference(hooked) -> None:
    net = InvertibleSequential(AdditiveCoupling(Aliased().double()), anchors=0)
    gain = net[0].conditioner.gain
    if not hooked:
        found, expected = both(net, lambda: grad(net(sample()).sum(), [gain]))
        assert_all_equal(found, expected)
        return
    gain.register_hook(lambda g: 2 * g)
    with pytest.raises(RuntimeError, match=r"layer 0 \(Add.*through another reference"):
        net(sample()).sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it
@pytest.mark.parametrize("anchors", [0, 8])
def test_layers_that_are_compiled_on_their_own(anchors) -> None:
    net = stack(anchors, depth=12)
    x = sample(requires_grad=True)
    expected = grad(net(x).sum(), [x, *parameters(net)])
    for layer in net:
        layer.compile(backend="aot_eager")
    assert_all_equal(grad(net(x).sum(), [x, *parameters(net)]), expected)


@pytest.mark.parametrize("anchors", [0, 3, 8])
def test_a_hook_that_stops_the_gradient(anchors) -> None:
    net = mixed(lambda: Conditioner(2, 2), anchors)
    net[12].register_forward_hook(lambda _module, _inputs, y: y.detach())
    found, expected = both(net, lambda: differentiated(net, lambda _, y: y.sin().sum()))
    assert_all_equal(found, expected)


class Centered(InvertibleModule):
    """A layer that takes its parameters from the first batch it sees."""

    def __init__(self):
        super().__init__()
        self.center = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x):
        if not self.ready:
            with torch.no_grad():
                self.center.copy_(x.mean((0, 2, 3), keepdim=True))
                self.ready.fill_(True)
        return x - self.center

    def inverse(self, y):
        return y + self.center


def test_parameters_that_come_from_the_first_batch() -> None:
    net = InvertibleSequential(*stack(0), Centered(), *stack(0), anchors=0).double()
    x = sample()
    with pytest.raises(RuntimeError, match=r"layer 10 \(Centered\) modified its.*no_g"):
        net(x)
    net[10].ready.fill_(False)
    with torch.no_grad():
        net(x)
    found, expected = both(net, lambda: grad(net(x).sin().sum(), parameters(net)))
    assert_all_equal(found, expected)


@pytest.mark.parametrize(
    "lazy",
    [
        lambda: nn.LazyConv2d(2, 3, padding=1),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.LazyBatchNorm2d(affine=False)),
    ],
    ids=["parameters", "buffers"],
)
def test_lazy_modules_are_given_a_shape_first(lazy: Callable[[], nn.Module]) -> None:
    net = InvertibleSequential(*[AdditiveCoupling(lazy()) for _ in range(3)])
    x = torch.randn(2, 4, 5, 4)
    for net.memory in ("auto", "invert"):
        with pytest.raises(RuntimeError, match=r"layer 0 \(Addi.*lazy module.*no_grad"):
            net(x)
    with torch.no_grad():
        net(x)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class Moves:
    """Both directions of a layer, for any class that has a network."""

    def forward(self, x, *_):
        x1, x2 = x.chunk(2, 1)
        return torch.cat([x1, x2 + self.conditioner(x1)], 1)

    def inverse(self, y, *_):
        y1, y2 = y.chunk(2, 1)
        return torch.cat([y1, y2 - self.conditioner(y1)], 1)


class Doubles:
    """A class to be put before another one, whose directions it changes."""

    def forward(self, x, *context):
        return 2 * super().forward(x, *context)

    def inverse(self, y, *context):
        return super().inverse(y / 2, *context)


class Moving(Moves, InvertibleModule):
    """A layer whose directions are those of a class that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conditioner = Conditioner(2, 2)


class Doubling(Doubles, AdditiveCoupling):
    """A coupling whose directions another class changes."""

    def __init__(self) -> None:
        super().__init__(Conditioner(2, 2))


class Below(Doubling):
    """It inherits all of it."""


def sines(_, y):
    return y.sin().sum()


@pytest.mark.parametrize("kind", [Moving, Doubling, Below])
@pytest.mark.parametrize("place", range(4))
def test_a_direction_may_come_from_a_class_that_is_no_module(kind, place) -> None:
    layers = [AdditiveCoupling(Conditioner(2, 2)), Householder1x1(4)]
    layers.append(AdditiveCoupling(Conditioner(2, 2)))
    layers.insert(place, kind())
    net = InvertibleSequential(*layers, anchors=0).double()
    assert_all_equal(
        *both(net, lambda: differentiated(net, lambda _, y: y.sin().sum()))
    )
    evaluated = layers[place].conditioner.evaluations
    net.memory = "invert"
    differentiated(net, lambda _, y: y.sum())
    assert layers[place].conditioner.evaluations - evaluated >= 2  # it was replayed
