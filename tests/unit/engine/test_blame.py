"""What is unusual works, or one sentence says what is to blame."""

import dataclasses
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    DriftError,
    ElementwiseAffine,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    VolumePreserving,
)
from tests.parts import Conditioner, Reverse, Scale
from tests.stacks import alternating, both, gradients_of, mixed, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

ACTIVATIONS = [nn.ReLU, nn.ELU, nn.SiLU, nn.Hardtanh, nn.LeakyReLU]


@given(st.sampled_from(ACTIVATIONS), st.integers(0, 3), st.sampled_from([0, 3]))
def test_an_activation_in_place_behind_a_projection(kind, dims, anchors) -> None:
    """The first product of the layer is a new tensor: writing on it is allowed."""
    linear = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d][dims]
    size = (1,) if dims else ()
    layers = [
        OrthogonalCoupling(
            nn.Sequential(kind(inplace=True), linear(2, 2, *size)), channels=4
        )
        for _ in range(5)
    ]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    shape = (3, 4, *[2] * dims)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert_all_equal(*both(net, gradients_of(net, x)))


def hooked(conditioner, anchors: int, features: list, keep=lambda t: t):
    """Return a network in whose conditioners hooks keep what modules return."""
    net = mixed(conditioner, anchors)
    for layer in net[::2]:
        for part in layer.conditioner.children():
            part.register_forward_hook(lambda *call: features.append(keep(call[-1])))
    return net


def conditioner() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)
    )


def convolved_in_place() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)
    )


@pytest.mark.parametrize("make", [conditioner, convolved_in_place])
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_a_feature_inside(anchors, make, create_graph) -> None:
    """Grad-CAM asks for it."""
    features: list[torch.Tensor] = []
    net, x = hooked(make, anchors, features), sample(requires_grad=True)

    def gradients():
        features.clear()
        y, options = weighed(net(x)), {"create_graph": create_graph}
        kept = [*features]
        if make is convolved_in_place:  # what is written over is no feature any more
            kept = kept[1::3] + kept[2::3]
        first = torch.autograd.grad(y, kept[:1], retain_graph=True, **options)
        tensors = [*kept, x, *net.parameters()]
        return [*first, *torch.autograd.grad(y, tensors, **options)]

    assert_all_equal(*both(net, gradients))


def test_losses_on_a_feature_inside(anchors) -> None:
    features: list[torch.Tensor] = []
    net, x = hooked(conditioner, anchors, features), sample(requires_grad=True)

    def gradients():
        features.clear()
        x.grad, y = None, net(x)
        kept = [*features]
        kept[4].retain_grad()
        (weighed(y) + sum(map(weighed, kept[::2]))).backward()
        return [x.grad, kept[4].grad, *(p.grad for p in net.parameters())]

    assert_all_equal(*both(net, gradients))


def test_features_that_are_dropped_before_backward(anchors) -> None:
    features: list[torch.Tensor] = []
    net, x = hooked(conditioner, anchors, features), sample(requires_grad=True)

    def gradients():
        y = weighed(net(x))
        del features[1:]
        return torch.autograd.grad(y, [x, *net.parameters()])

    assert_all_equal(*both(net, gradients))


class Counted(Conditioner):
    """Counts its batches in a buffer, which it does not read."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.register_buffer("batches", torch.zeros(2))


class Scaled(Counted):
    """Reads the buffer."""

    def forward(self, x):
        return super().forward(x) + self.batches.sum()


def counted(kind, anchors: int = 0) -> InvertibleSequential:
    layers = [AdditiveCoupling(kind(2, 2)) for _ in range(5)]
    return alternating(layers, anchors=anchors).double()


def test_a_buffer_for_monitoring_may_change_before_backward(anchors) -> None:
    net, x = counted(Counted, anchors), sample(requires_grad=True)

    def gradients():
        y = net(x)
        for layer in net[1::2]:
            layer.conditioner.batches += 1
        return torch.autograd.grad(weighed(y), [x, *net.parameters()])

    assert_all_equal(*both(net, gradients))
    assert net[1].conditioner.batches[0] == 2


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_a_buffer_that_the_layer_reads_may_not(memory) -> None:
    net, x = counted(Scaled), sample(requires_grad=True)
    net.memory, y = memory, net(x)
    net[1].conditioner.batches += 1
    with pytest.raises(RuntimeError, match=r"batches of layer 1 .* in place between"):
        y.sum().backward()


class Adds(VolumePreserving):
    """Adds one, and has a log-determinant that depends on its context."""

    def forward(self, x, *_):
        return x + 1

    def inverse(self, y, *_):
        return y - 1

    def forward_and_log_det(self, x, scale):
        return self.forward(x), scale.expand(len(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_states_of_integers_with_log_determinants(anchors, dtype) -> None:
    net, x = mixed_integers(anchors), torch.arange(12).view(3, 4).to(dtype)
    scale = torch.ones(1, requires_grad=True)
    y, log_det = net.forward_and_log_det(x, scale)
    assert torch.equal(y, x + 12)
    (found,) = torch.autograd.grad(log_det.sum(), scale)
    assert found == 36


def mixed_integers(anchors: int) -> InvertibleSequential:
    return InvertibleSequential(*[Adds() for _ in range(12)], anchors=anchors)


def test_a_wrong_inverse_of_integers() -> None:
    class Wrong(Adds):
        def inverse(self, y, *_):
            return y - 2

    net = InvertibleSequential(Adds(), Wrong())  # the input is kept, not rebuilt
    scale = torch.ones(1, requires_grad=True)
    net.anchors = 0
    _, log_det = net.forward_and_log_det(torch.ones(3, 4).long(), scale)
    with pytest.raises(DriftError, match=r"inverting layer 1 \(Wrong\)"):
        log_det.sum().backward()


class Multiplied(Conditioner):
    """Reads a context of any kind."""

    def forward(self, x, context):
        factor = context if isinstance(context, torch.Tensor) else context.factor
        return super().forward(x) * factor.to_dense().sum()


def reading(anchors: int = 0) -> InvertibleSequential:
    layers = [AdditiveCoupling(Multiplied(2, 2)) for _ in range(5)]
    return alternating(layers, anchors=anchors).double()


def sparse_leaf() -> torch.Tensor:
    return torch.eye(3, dtype=torch.float64).to_sparse().requires_grad_()


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_sparse_context_while_threads_run(anchors, create_graph) -> None:
    net, x, context = reading(anchors), sample(requires_grad=True), sparse_leaf()
    found: list[list[torch.Tensor]] = []

    def train() -> None:
        y = weighed(net(x, context))
        grads = torch.autograd.grad(y, [x, context], create_graph=create_graph)
        found.append([g.detach().to_dense() for g in grads])

    def in_a_thread():
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        return found.pop()

    assert_all_equal(*both(net, in_a_thread))


def test_fake_tensors(anchors) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        layers = [AdditiveCoupling(Conditioner(2, 2, dropout=0.5)) for _ in range(9)]
        net = alternating([*layers, Householder1x1(4)], anchors=anchors)
        x = torch.randn(2, 4, 3, 3, requires_grad=True)
        net(x).sum().backward()
        grads = [x.grad, *(p.grad for p in net.parameters())]
    assert all(isinstance(g, FakeTensor) for g in grads)
    assert grads[0].shape == x.shape


@dataclasses.dataclass
class Holds:
    """A context with a field that is not set."""

    factor: torch.Tensor
    cache: object = dataclasses.field(init=False)


class Plain:
    """A context that is an object."""

    def __init__(self, factor):
        self.factor = factor


def test_a_dataclass_with_a_field_that_is_not_set(anchors) -> None:
    net, x = reading(anchors), sample(requires_grad=True)
    factor = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def gradients():
        return torch.autograd.grad(weighed(net(x, Holds(factor))), [x, factor])

    assert_all_equal(*both(net, gradients))


def test_an_object_as_context(anchors) -> None:
    net, x = reading(anchors), sample(requires_grad=True)
    plain = Plain(torch.ones(1, dtype=torch.float64))
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x, plain)), x)))
    net.memory = "invert"
    y = net(x, Plain(torch.ones(1, dtype=torch.float64, requires_grad=True)))
    words = r"needs a gradient from a context of type Plain: pass a tensor, list"
    with pytest.raises(RuntimeError, match=words):
        y.sum().backward()


def test_a_fused_optimizer_that_steps_before_backward() -> None:
    net, x = mixed(lambda: Conditioner(2, 2), 0), sample(requires_grad=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    net(x).sum().backward()
    loss = net(x).sum()
    optimizer.step()
    with pytest.raises(DriftError, match="a fused optimizer that stepped"):
        loss.backward()


def test_a_jump_of_a_conditioner_is_named() -> None:
    class Direction(nn.Module):
        def forward(self, x):
            return F.normalize(x, dim=1)

    nothing = nn.Conv2d(2, 2, 1, bias=False)
    nn.init.zeros_(nothing.weight)
    layers = [AdditiveCoupling(Direction()), Householder1x1(4)]
    first = ElementwiseAffine(4), AdditiveCoupling(nothing)  # which scales all entries
    net = InvertibleSequential(*first, *layers, anchors=0)
    x = torch.cat([torch.zeros(1, 2, 5, 5), torch.ones(1, 2, 5, 5)], 1)
    loss = net(x.requires_grad_()).sum()  # the zeros are rebuilt as rounding errors
    with pytest.raises(DriftError, match=r"jumps at such a state \(as `F.normalize`"):
        loss.backward()


def couplings() -> list[InvertibleModule]:
    convolution = {"kernel_size": 3, "padding": 1}
    return [
        AdditiveCoupling(nn.Conv2d(2, 2, **convolution)),
        AffineCoupling(nn.Sequential(nn.Conv2d(2, 4, **convolution))),
        OrthogonalCoupling(nn.Conv2d(2, 2, **convolution), channels=4),
    ]


@pytest.mark.parametrize("layer", couplings(), ids=lambda c: type(c).__name__)
def test_a_conditioner_that_takes_no_context(layer) -> None:
    words = r"does not take the context, 1 argument\(s\) besides x: accept it"
    for module in (layer.double(), InvertibleSequential(layer)):
        with pytest.raises(TypeError, match=words):
            module(sample(requires_grad=True), sample())


def test_another_type_error_of_a_conditioner_is_left_alone() -> None:
    class Breaks(nn.Module):
        def forward(self, x, context):
            return x + None * len(context)

    with pytest.raises(TypeError, match="unsupported operand"):
        AdditiveCoupling(Breaks())(sample(), sample())


def test_a_constructor_that_forgets_that_of_its_base_class() -> None:
    class Layer(Scale):
        def __init__(self):
            self.size = 2

    class Network(nn.Module):
        def __init__(self):
            self.size = 2

    words = r"is not initialized: call `super\(\).__init__\(\)` first in the `__init__`"
    with pytest.raises(RuntimeError, match="Layer " + words):
        InvertibleSequential(Layer())
    for make in (AdditiveCoupling, AffineCoupling):
        with pytest.raises(RuntimeError, match="Network " + words):
            make(Network())


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_layer_without_a_log_determinant_says_how_to_write_one(direction) -> None:
    class Silent(Reverse, InvertibleModule):
        forward_and_log_det = InvertibleModule.forward_and_log_det
        inverse_and_log_det = InvertibleModule.inverse_and_log_det

    method = f"{direction}_and_log_det"
    words = f"no log-determinant: define `{method}`, which returns it beside"
    with pytest.raises(NotImplementedError, match=words):
        getattr(InvertibleSequential(Silent()), method)(sample())


@pytest.mark.parametrize("channels", [2, 3, 4, 9])
def test_the_default_number_of_reflections(channels) -> None:
    layer = OrthogonalCoupling(nn.Identity(), channels=channels)
    assert len(layer.vectors) == min(3, channels)


SHAPE = r"shape .*received \(2, 4, 5, 3\)"
WRONG_KINDS = [
    (lambda x: x[:, :2], SHAPE),
    (lambda x: x[:1], SHAPE),
    (lambda x: x.mean(1, keepdim=True), SHAPE),
    (lambda x: x.transpose(2, 3), SHAPE),
    (lambda x: x.flatten(1), SHAPE),
    (lambda x: x.unsqueeze(0), SHAPE),
    (lambda x: x.double(), r"torch.float64, .*received torch.float32"),
    (lambda x: x.half(), r"torch.float16, .*received torch.float32"),
    (lambda x: x + 0j, r"torch.complex64, .*received torch.float32"),
]


@given(
    st.sampled_from(WRONG_KINDS),
    st.sampled_from(["raise", "warn", None]),
    st.booleans(),
)
def test_an_inverse_that_returns_another_kind(kind, guard, in_a_tuple) -> None:
    wrong, words = kind

    class Wrong(InvertibleModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, state):
            return state if in_a_tuple else self.weight * state

        def inverse(self, state):
            return (state[0], wrong(state[1])) if in_a_tuple else wrong(state)

    net = InvertibleSequential(Wrong(), Wrong(), anchors=0, guard=guard)
    x = torch.randn(2, 4, 5, 3, requires_grad=True)
    y = net((x, x) if in_a_tuple else x)
    loss = y[1].sum() if in_a_tuple else y.sum()
    message = rf"the inverse of layer 1 \(Wrong\) returned {words}"
    with pytest.raises(RuntimeError, match=message):
        loss.backward()
