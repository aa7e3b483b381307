"""What `torch.compile` cannot do right is seen when it is traced, and refused."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

from invtorch import (
    AdditiveCoupling,
    InvertibleModule,
    InvertibleSequential,
    WithoutContext,
)
from tests.compilation import COMPILING, compiled
from tests.parts import Conditioner, Leapfrog, Scale
from tests.stacks import parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = [*COMPILING, pytest.mark.slow]


class Normalized(Conditioner):
    """A conditioner that moves running statistics."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(super().forward(x))


def with_dropout():
    return Conditioner(2, 2, dropout=0.5)


def hooked():
    conditioner = Conditioner(2, 2)
    conditioner.first.register_forward_hook(lambda *_: None)
    return conditioner


def bounded():
    conditioner = Conditioner(2, 2)
    nn.utils.parametrizations.spectral_norm(conditioner.second)
    return conditioner


REFUSED = {
    "Dropout": (with_dropout, r"layer 0 \(AdditiveCoupling\) draws random numbers"),
    "BatchNorm": (Normalized, r"updates running statistics \(BatchNorm2d\)"),
    "spectral norm": (bounded, r"updates its estimate of the norm"),
    "a hook": (hooked, r"has hooks \(on its Conv2d\)"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_modules_that_cannot_be_replayed_are_refused(case) -> None:
    make, message = REFUSED[case]
    net = InvertibleSequential(*[AdditiveCoupling(make()) for _ in range(3)]).double()
    with pytest.raises(Unsupported, match=message):
        compiled(net)(sample(requires_grad=True))


def test_a_lazy_module_is_refused() -> None:
    net = InvertibleSequential(AdditiveCoupling(nn.LazyConv2d(2, 3, padding=1)))
    with pytest.raises(Unsupported, match=r"layer 0 .* without a shape .*LazyConv2d"):
        compiled(net)(sample())


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_without_fullgraph_the_container_runs_outside_of_the_graph(case) -> None:
    """A graph break, and all that the engine can do in eager mode."""
    make, _ = REFUSED[case]
    net = InvertibleSequential(*[AdditiveCoupling(make()) for _ in range(10)]).double()
    x, initial = sample(requires_grad=True), copy.deepcopy(net.state_dict())

    def gradients(function):
        torch.manual_seed(0)
        net.load_state_dict(initial)
        return torch.autograd.grad(function(), [x, *parameters(net)])

    def loss():
        return weighed(net(torch.sin(x)) * 2)

    net.memory = "store"
    expected = gradients(loss)
    net.memory = "invert"
    assert_all_equal(gradients(compiled(loss, fullgraph=False)), expected)


@pytest.mark.parametrize("option", ["checkpoint", "offload"])
def test_other_strategies_are_refused(option) -> None:
    net = stack(0, depth=3)
    net.memory = option
    with pytest.raises(Unsupported, match=f"memory='{option}' is not supported under"):
        compiled(net)(sample(requires_grad=True))
    net.memory, net[0].memory = "invert", option
    with pytest.raises(Unsupported, match=f"layer 0 .* has memory='{option}'"):
        compiled(net)(sample(requires_grad=True))


@pytest.mark.parametrize("view", [False, True])
def test_hooks_of_a_container_inside_are_refused(view) -> None:
    """Its layers are run in its place, so they would not be called."""
    inner = stack(0, depth=2)
    net = InvertibleSequential(WithoutContext(inner.inv if view else inner))
    net[0].module.register_forward_hook(lambda _, __, y: 2 * y)
    with pytest.raises(Unsupported, match=f"{type(net[0].module).__name__} has hooks"):
        compiled(net)(sample(requires_grad=True))
    x = sample(requires_grad=True)
    assert_all_equal([compiled(net, fullgraph=False)(x)], [net(x)])


def test_a_log_determinant_is_refused() -> None:
    net = InvertibleSequential(Scale(4), Scale(4)).double()
    with pytest.raises(Unsupported, match="a log-determinant is not supported under"):
        compiled(net.forward_and_log_det)(sample(requires_grad=True))


class Single(InvertibleModule):
    """A layer that turns double precision into single precision."""

    def forward(self, x, *_):
        return x.float()

    def inverse(self, y, *_):
        return y.double()


def test_a_layer_that_changes_the_dtype_is_refused() -> None:
    net = InvertibleSequential(Single(), anchors=0, guard=None)
    message = r"layer 0 \(Single\) changed the dtype of the state from"
    with pytest.raises(Unsupported, match=message):
        compiled(net)(sample(requires_grad=True))


def test_a_tensor_captured_by_closure_is_refused() -> None:
    captured = torch.ones(1, dtype=torch.float64, requires_grad=True)

    class Captures(Conditioner):
        def forward(self, x):
            return super().forward(x) * captured

    net = InvertibleSequential(AdditiveCoupling(Captures(2, 2))).double()
    with pytest.raises(Unsupported, match="reads a tensor that needs a gradient but"):
        compiled(net)(sample(requires_grad=True))


def test_arguments_that_are_no_floating_tensors_are_refused() -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(2)], anchors=0)
    q, p = torch.randn(2, 2, 5, 4, requires_grad=True), torch.ones(2, 2, 5, 4).long()
    with pytest.raises(Unsupported, match=r"a state in torch\.int64 is not supported"):
        compiled(net)((q, p))
    with pytest.raises(Unsupported, match="a context that is a dict is not supported"):
        compiled(stack(0, depth=2))(sample(requires_grad=True), {"scale": sample(1)})


@pytest.mark.parametrize("guard", ["warn", "adapt"])
def test_a_guard_that_does_not_raise_is_refused(guard) -> None:
    net = stack(0, depth=3)
    net.guard = guard
    with pytest.raises(Unsupported, match=f"guard='{guard}' is not supported under"):
        compiled(net)(sample(requires_grad=True))


def test_a_state_in_half_precision_without_a_guard_is_refused() -> None:
    net = stack(0, depth=3).bfloat16()
    net.guard = None
    with pytest.raises(
        Unsupported, match=r"a state in torch\.bfloat16 cannot be rebuilt"
    ):
        compiled(net)(sample().bfloat16().requires_grad_())
