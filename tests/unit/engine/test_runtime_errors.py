"""Where the engine cannot be right it raises, and names the layer and the way out."""

import pytest
import torch
from torch import nn
from torch.autograd import grad

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    GatedResidualBlock,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
)
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner, Scale
from tests.stacks import alternating, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


@pytest.fixture(params=[0, 2])
def net(request):
    layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(3)]
    return alternating(layers, anchors=request.param)


@pytest.fixture
def x():
    return torch.randn(1, 4, 3, 3, requires_grad=True)


def test_a_hook_that_changes_the_state(net, x) -> None:
    net[2].register_forward_hook(lambda _, __, output: output * 2)
    with pytest.raises(RuntimeError, match=r"layer 3 \(AdditiveCoupling\).*a hook, "):
        net(x)


def test_a_hook_that_changes_the_state_in_place(net, x) -> None:
    def double(_, arguments) -> None:
        arguments[0].detach().mul_(2)

    net[3].register_forward_pre_hook(double)
    with pytest.raises(RuntimeError, match=r"layer 3 \(AdditiveCoupling\).*in-place"):
        net(x)


def test_the_output_changed_in_place(net, x) -> None:
    y = net(x)
    y += 1
    with pytest.raises(RuntimeError, match=r"output of layer 5 .*y = y \+ 1"):
        y.sum().backward()


def test_a_parameter_changed_in_place(net, x) -> None:
    loss = net(x).sum()
    with torch.no_grad():
        net[1].conditioner.first.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"weight of layer 1 .*step the optimizer"):
        loss.backward()


class Labeled(nn.Module):
    """A conditioner that adds a vector of limited length for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2, max_norm=0.5)

    def forward(self, x, labels):
        return x.sin() + self.embedding(labels)[..., None, None]


def test_a_parameter_that_every_call_changes() -> None:
    net = InvertibleSequential(AdditiveCoupling(Labeled()))
    x, labels = torch.randn(3, 4, 2, 2), torch.tensor([0, 2, 2])
    with pytest.raises(RuntimeError, match=r"weight.*set `layer.memory = 'store'`"):
        net(x, labels)
    weight = net[0].conditioner.embedding.weight
    gradients = []
    for net[0].memory, net.memory in (("store", "invert"), (None, "store")):
        gradients += grad(weighed(net(x, labels)), weight)
    assert_all_equal(gradients[:1], gradients[1:])


@ON_THE_CPU  # elsewhere a copy is kept, and the replay is right
def test_a_buffer_changed_in_place(net, x) -> None:
    class Stronger(Conditioner):
        def forward(self, x):
            return self.strength * super().forward(x)

    net[1].conditioner = Stronger(2, 2)
    net[1].conditioner.register_buffer("strength", torch.ones(1))
    loss = net(x).sum()
    net[1].conditioner.strength.zero_()
    with pytest.raises(RuntimeError, match=r"strength of layer 1 .*modified in place"):
        loss.backward()


def test_a_context_changed_in_place(net, x) -> None:
    context = torch.ones(1, 1, 3, 3)
    loss = net(x, context).sum()
    context.zero_()
    with pytest.raises(RuntimeError, match=r"context of layer 5 .*modified in place"):
        loss.backward()


def test_a_tensor_captured_by_closure(x) -> None:
    captured = torch.ones(1, requires_grad=True)

    class Captures(Conditioner):
        def forward(self, x):
            return super().forward(x) * captured

    net = InvertibleSequential(AdditiveCoupling(Captures(2, 2)))
    with pytest.raises(
        RuntimeError, match=r"layer 0 .*shape \(1,\).*pass it as context"
    ):
        net(x).sum().backward()


def test_a_layer_that_changes_the_dtype(x) -> None:
    class Rounds(Scale):
        def forward(self, x):
            return super().forward(x).half()

    with pytest.raises(RuntimeError, match=r"layer 1 \(Rounds\) changed the dtype"):
        InvertibleSequential(Scale(4), Rounds(4))(x)


def test_a_state_that_is_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"a tensor or a tuple of tensors, not list"):
        InvertibleSequential(Scale(4))([torch.ones(1, 4, 2, 2, requires_grad=True)])


def test_a_layer_that_returns_nothing() -> None:
    class Forgetful(Scale):
        def forward(self, x):
            super().forward(x)

    with pytest.raises(TypeError, match="not NoneType: is a `return` missing") as error:
        InvertibleSequential(Forgetful(4))(torch.ones(1, 4, 2, 2))
    assert "layer 0 (Forgetful)" in "".join(error.value.__notes__)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_states_of_integers(dtype, direction) -> None:
    x = torch.ones(2, 4, 5, 4, dtype=dtype)
    mixes = [Householder1x1(4), OrthogonalCoupling(Conditioner(2, 2), channels=4)]
    for layer in mixes:
        with pytest.raises(TypeError, match=rf"a state in {dtype} .*`x.float\(\)`"):
            getattr(layer, direction)(x)
    for layer in (
        AdditiveCoupling(Conditioner(2, 2)),
        AffineCoupling(Conditioner(2, 4)),
    ):
        with pytest.raises(TypeError, match=rf"a state in {dtype} cannot hold"):
            getattr(layer, direction)(x)


def test_a_real_state_for_a_complex_conditioner() -> None:
    layer = AdditiveCoupling(Conditioner(2, 2))
    layer.conditioner.register_forward_hook(lambda _, args, y: y + 0j)
    with pytest.raises(TypeError, match=r"complex64, which a state in torch\.float32"):
        layer(torch.ones(2, 4, 5, 4))


@pytest.mark.parametrize("shape", [(4, 3, 3), (2, 4, 3), (2, 4, 3, 3, 3)])
def test_states_of_another_rank(shape) -> None:
    net = InvertibleSequential(AdditiveCoupling(GatedResidualBlock(2, 2, hidden=3)))
    with pytest.raises(ValueError, match=r"dims=2: give it \(batch, channels, 2"):
        net(torch.zeros(shape))
    with pytest.raises(ValueError, match="does not have the 4 channels"):
        Householder1x1(4)(torch.zeros(4))
    with pytest.raises(ValueError, match="has no dim 1 to be split along"):
        AdditiveCoupling(nn.Linear(2, 2))(torch.zeros(4))
    with pytest.raises(ValueError, match=r"begins with a Conv2d, .* with 2 axes"):
        AdditiveCoupling(nn.Sequential(nn.Conv2d(2, 2, 1)))(torch.zeros(shape))


def test_channels_that_do_not_fit_the_conditioner(x) -> None:
    with pytest.raises(
        ValueError, match=r"returned shape .* the other part of the state needs"
    ):
        AdditiveCoupling(Conditioner(2, 3))(x)
    with pytest.raises(ValueError, match=r"returned shape .* the other part"):
        OrthogonalCoupling(Conditioner(2, 3), channels=4)(x)
    with pytest.raises(ValueError, match="does not have the 6 channels"):
        OrthogonalCoupling(Conditioner(3, 3), channels=6)(x)


def test_states_that_cannot_be_split(x) -> None:
    with pytest.raises(ValueError, match="4 entries along dim 1 cannot be split at 4"):
        AdditiveCoupling(Conditioner(4, 1), split=4)(x)
    with pytest.raises(ValueError, match="1 entries along dim 1"):
        AdditiveCoupling(Conditioner(1, 1))(x[:, :1])
    with pytest.raises(ValueError, match="split is 0"):
        AdditiveCoupling(Conditioner(1, 1), split=0)


def test_an_error_of_a_layer_is_noted_with_its_place(net, x) -> None:
    net[4] = OrthogonalCoupling(nn.Identity(), channels=6)
    with pytest.raises(ValueError, match="6 channels") as caught:
        net(x)
    assert caught.value.__notes__ == [
        "in layer 4 (OrthogonalCoupling) of an invertible container"
    ]


def test_an_error_of_an_inverse_is_noted_with_its_place(x) -> None:
    class OneWay(Scale):
        def inverse(self, *_):
            raise ArithmeticError("no way back")

    net = InvertibleSequential(Scale(4), OneWay(4), Scale(4), anchors=0)
    with pytest.raises(ArithmeticError, match="no way back") as caught:
        net(x).sum().backward()
    assert caught.value.__notes__ == ["in layer 1 (OneWay) of an invertible container"]


def test_a_conditioner_that_works_in_place_on_its_input(net, x) -> None:
    net[3].conditioner = nn.Sequential(nn.ReLU(inplace=True), Conditioner(2, 2))
    with pytest.raises(RuntimeError, match=r"layer 3 .* its input in place.*inplace="):
        net(x)


def test_an_inner_loss_asked_for_twice_after_the_layers_above_were_freed() -> None:
    """The first two passes are right, the third one says what is missing."""
    net, x, inner = stack(0), sample(requires_grad=True), []
    net[5].register_forward_hook(lambda *arguments: inner.append(arguments[-1]))
    net.memory = "store"
    net(x)
    expected = torch.autograd.grad(weighed(inner.pop()), x)
    net.memory = "invert"
    y = net(x)
    weighed(y).backward(inputs=list(net[8].parameters()))
    del y
    (loss,) = map(weighed, inner)
    found = torch.autograd.grad(loss, x, retain_graph=True)
    assert_all_equal(found, expected)
    with pytest.raises(
        RuntimeError, match=r"the output of layer 5 \(\w+\) was freed .*"
    ):
        torch.autograd.grad(loss, x)


def test_a_hook_that_conjugates_the_state() -> None:
    net = InvertibleSequential(Scale(4), Scale(4), guard=None, anchors=0)
    net[0].register_forward_hook(lambda _, __, output: output.conj())
    with pytest.raises(RuntimeError, match=r"layer 1 \(Scale\).*a hook, "):
        net(torch.randn(1, 4, 2, 2, dtype=torch.complex64, requires_grad=True))


def test_a_log_determinant_that_is_no_tensor(x) -> None:
    class Counts(Scale):
        def forward_and_log_det(self, x):
            return self.forward(x), 0.0

    with pytest.raises(TypeError, match=r"layer 0 \(Counts\) returned .* a float"):
        InvertibleSequential(Counts(4)).forward_and_log_det(x)


class InPlace(Scale):
    """A layer whose inverse writes into the output that it is given."""

    def inverse(self, y):
        return y.mul_((-self.log_scale).view(self.shape).exp())


@pytest.mark.parametrize("guard", ["raise", None])
def test_an_inverse_that_works_in_place_on_the_output(x, guard) -> None:
    net = InvertibleSequential(Scale(4), InPlace(4), anchors=0, guard=guard)
    loss = net(x).sum()
    with pytest.raises(RuntimeError, match=r"layer 1 \(InPlace\) modified in"):
        loss.backward()


class Rectified(nn.Module):
    """A conditioner that calls a function of `torch.jit.script`."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Conditioner(1, 1)
        self.function = torch.jit.script(rectified)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function to what the module inside returns."""
        out: torch.Tensor = self.function(self.inside(x))
        return out


def rectified(x: torch.Tensor) -> torch.Tensor:
    return x.relu() * x.tanh()


def gradients_or_error(net: InvertibleSequential, x: torch.Tensor) -> object:
    try:
        return grad(weighed(net(x)), (x, *net.parameters()))
    except RuntimeError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:.torch.jit.")
@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (3, 2, 8, 8)])
def test_a_function_that_torch_jit_compiled(shape) -> None:
    net = InvertibleSequential(*[AdditiveCoupling(Rectified()) for _ in range(3)])
    net.double()
    for step in range(4):  # it is compiled anew in its first calls
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        found = gradients_or_error(net, x)
        if isinstance(found, str):
            assert step < 2
            assert "`torch.jit.script`" in found
        else:
            net.memory = "store"
            assert_all_equal(found, gradients_or_error(net, x))
            net.memory = "invert"


@pytest.mark.filterwarnings("ignore:.torch.jit.")
@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("memory", ["invert", "auto"])
def test_a_conditioner_that_torch_jit_compiled(x, memory, trace) -> None:
    conditioner = nn.Conv2d(2, 2, 1)
    traced = torch.jit.trace(conditioner, torch.ones(1, 2, 3, 3))
    scripted = traced if trace else torch.jit.script(conditioner)
    net = InvertibleSequential(AdditiveCoupling(scripted), memory=memory)
    with pytest.raises(RuntimeError, match=r"layer 0 .*`torch.jit` compiled.*store"):
        net(x)
    net.memory = "store"
    net(x).sum().backward()
