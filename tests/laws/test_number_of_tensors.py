"""Layers may split a state in several tensors, or join several to one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invtorch import (
    InvertibleModule,
    InvertibleSequential,
    Join,
    OnPart,
    OrthogonalCoupling,
    Split,
)
from invtorch.planning import measure_memory
from tests.compilation import COMPILING, compiled
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner, Reverse, Scale
from tests.strategies import (
    Example,
    anchors,
    assert_as_plain,
    directions,
    memories,
    weighed,
)
from tests.tolerances import assert_all_equal, assert_equal

CHANNELS = 6


class OnTensor(InvertibleModule):
    """Applies a module to tensor `index` of the state."""

    def __init__(self, module: InvertibleModule, index: int):
        super().__init__()
        self.module, self.index = module, index

    def forward(self, x, *context):
        return self._replaced(x, self.module(x[self.index], *context))

    def inverse(self, y, *context):
        return self._replaced(y, self.module.inverse(y[self.index], *context))

    def forward_and_log_det(self, x, *context):
        y, log_det = self.module.forward_and_log_det(x[self.index], *context)
        return self._replaced(x, y), log_det

    def inverse_and_log_det(self, y, *context):
        x, log_det = self.module.inverse_and_log_det(y[self.index], *context)
        return self._replaced(y, x), log_det

    def _replaced(self, state, tensor):
        return tuple(tensor if i == self.index else t for i, t in enumerate(state))


class Between(InvertibleModule):
    """Shifts the last tensor of a state by a function of the first one."""

    def __init__(self, first: int, last: int):
        super().__init__()
        self.conditioner = Conditioner(first, last, 1)

    def forward(self, x, *context):
        return (*x[:-1], x[-1] + self.conditioner(x[0], *context))

    def inverse(self, y, *context):
        return (*y[:-1], y[-1] - self.conditioner(y[0], *context))

    def forward_and_log_det(self, x, *context):
        return self(x, *context), torch.zeros(len(x[0]), dtype=x[0].dtype)

    def inverse_and_log_det(self, y, *context):
        return self.inverse(y, *context), torch.zeros(len(y[0]), dtype=y[0].dtype)


def on_one(draw) -> InvertibleModule:
    return draw(st.sampled_from([Scale(CHANNELS, 1), coupling(CHANNELS), Reverse()]))


def coupling(channels: int) -> InvertibleModule:
    conditioner = Conditioner(channels // 2, -(-channels // 2), 1)
    return OrthogonalCoupling(conditioner, channels=channels, reflections=2)


@st.composite
def splits(draw) -> list[InvertibleModule]:
    """Draw layers that split a state, work on the parts, and join them."""
    sizes = draw(st.sampled_from([(3, 3), (1, 5), (2, 2, 2), (1, 3, 2)]))
    members: list[InvertibleModule] = [Split(sizes)]
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(sizes) - 1))
        between = Between(sizes[0], sizes[-1])
        on = OnTensor(Scale(sizes[index], 1), index)
        members.append(draw(st.sampled_from([between, on, between.inv])))
    return [*members, Join(sizes)]


@st.composite
def stacks(draw) -> Example:
    """Draw a stack whose states have different numbers of tensors."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    members: list[InvertibleModule] = []
    for _ in range(draw(st.integers(1, 4))):
        part = draw(splits()) if draw(st.booleans()) else [on_one(draw)]
        nested = draw(st.integers(0, 4)) == 4
        members += [InvertibleSequential(*part)] if nested else part
    x = torch.randn(2, CHANNELS, 4, dtype=torch.float64)
    if draw(st.integers(0, 2)) == 2:  # ends with a tuple
        members += [Split(2), Between(2, 4)]
    net = InvertibleSequential(*members, anchors=draw(anchors)).double()
    context = torch.randn(2, 1, 4, dtype=torch.float64)
    x.requires_grad_(draw(st.booleans()) or not [*net.parameters()])
    context.requires_grad_(draw(st.booleans()))
    return Example(net, x, (context,))


@given(stacks(), memories, directions)
def test_gradients_equal_plain_autograd(example: Example, memory, direction) -> None:
    if direction == "inverse":
        with torch.no_grad():
            y = example.module(example.x, *example.context)
        tensors = y if isinstance(y, tuple) else (y,)
        leaves = tuple(t.detach().requires_grad_() for t in tensors)
        example.x = leaves if isinstance(y, tuple) else leaves[0]

    def gradients(example, strategy):
        return example.gradients(strategy, direction)

    assert_as_plain(example, memory, gradients)


@given(stacks(), memories)
def test_second_order_gradients_equal_plain_autograd(example, memory) -> None:
    def second_order(example, strategy):
        example.module.memory = strategy
        loss = weighed(example.module(example.x, *example.context))
        grads = torch.autograd.grad(
            loss, example.inputs, create_graph=True, allow_unused=True
        )
        squares = [g.square().sum() for g in grads if g is not None and g.grad_fn]
        if not squares:
            return [None]
        return torch.autograd.grad(sum(squares), example.inputs, allow_unused=True)

    assert_as_plain(example, memory, second_order)


@given(stacks(), memories)
def test_log_det_gradients_equal_plain_autograd(example, memory) -> None:
    def gradients(example, strategy):
        example.module.memory = strategy
        y, log_det = example.module.forward_and_log_det(example.x, *example.context)
        loss = weighed(y) + log_det.sum()
        return torch.autograd.grad(loss, example.inputs, allow_unused=True)

    assert_as_plain(example, memory, gradients)


@given(stacks())
def test_round_trip(example: Example) -> None:
    y = example.module(example.x, *example.context)
    assert_equal(example.module.inverse(y, *example.context), example.x)


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
@given(st.integers(0, 2**31))
def test_auxiliary_loss_on_one_part(memory, seed) -> None:
    torch.manual_seed(seed)
    front = InvertibleSequential(Scale(4, 1), Split([1, 3]), anchors=0)
    back = InvertibleSequential(Between(1, 3), Join([1, 3]), Reverse(), anchors=0)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    net = InvertibleSequential(front, back, anchors=0).double()

    def gradients(example, strategy):
        example.module.memory = strategy
        parts = example.module[0](example.x)
        y = example.module[1](parts)
        return torch.autograd.grad(weighed(y) + weighed(parts[0]), example.inputs)

    assert_as_plain(Example(net, x, ()), memory, gradients)


@ON_THE_CPU
def test_live_bytes_do_not_depend_on_depth() -> None:
    def live(depth: int) -> float:
        between = [Between(2, 2) for _ in range(depth)]
        members = [Split(2), *between, Join(2), *[coupling(4) for _ in range(depth)]]
        net = InvertibleSequential(*members, anchors=0)
        x = torch.randn(2, 4, 64)
        return measure_memory(lambda: net(x)).live / x.nbytes

    assert live(4) == live(16) == live(64)


def test_state_in_another_precision() -> None:
    layers = [Split(2), OnTensor(Scale(2, 1), 0)]
    net = InvertibleSequential(*layers, state_dtype=torch.float64)
    a, b = net(torch.randn(1, 4, 3))
    assert a.dtype == b.dtype == torch.float32
    assert net.inverse((a, b)).dtype == torch.float32


class Forgetful(InvertibleModule):
    """Its inverse returns less than its forward receives."""

    def forward(self, x):
        a, b = x
        return torch.cat([a, b], 1)

    def inverse(self, y: Tensor):
        return y[:, :1]


def test_inverse_with_another_number_of_tensors_is_refused() -> None:
    net = InvertibleSequential(Scale(2, 0), Split(), Forgetful(), anchors=0)
    y = net(torch.randn(3, 2, requires_grad=True))
    with pytest.raises(RuntimeError, match="returned 1 tensors, but the layer"):
        y.sum().backward()


class Wrong(OnTensor):
    """Its inverse is wrong."""

    def inverse(self, y, *context):
        return tuple(1.01 * t for t in super().inverse(y, *context))


class Clamped(InvertibleModule):
    """A layer that loses what is beyond one half."""

    def forward(self, x):
        return torch.tanh(x.clamp(-0.5, 0.5))

    def inverse(self, y):
        return torch.atanh(y)


def test_a_wrong_inverse_of_a_part_raises() -> None:
    # the input of the first layer with a network is not rebuilt
    layers = [Split(2), Between(2, 4), OnPart(Clamped(), 1), Between(2, 4), Join(2)]
    net = InvertibleSequential(*layers, anchors=0).double()
    x = torch.randn(2, CHANNELS, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"layer 2 \(PartLayer\)"):
        weighed(net(x)).backward()


@pytest.mark.slow
@ON_THE_CPU
class TestCompiled:
    """Under `torch.compile` the same holds."""

    pytestmark = COMPILING

    @settings(max_examples=3)  # to compile takes seconds
    @given(stacks(), directions)
    def test_gradients_equal_plain_autograd(self, example: Example, direction) -> None:
        torch._dynamo.reset()
        state = example.x
        if direction == "inverse":
            with torch.no_grad():
                state = example.module(state, *example.context)
        tensors = state if isinstance(state, tuple) else (state,)
        leaves = tuple(t.detach().requires_grad_() for t in tensors)
        state = leaves if isinstance(state, tuple) else leaves[0]

        def loss():
            return weighed(getattr(example.module, direction)(state, *example.context))

        inputs = [*leaves, *example.module.parameters()]
        inputs += [c for c in example.context if c.requires_grad]
        example.module.memory = "store"
        expected = torch.autograd.grad(loss(), inputs, materialize_grads=True)
        example.module.memory = "invert"
        found = torch.autograd.grad(compiled(loss)(), inputs, materialize_grads=True)
        assert_all_equal(found, expected)

    @pytest.mark.parametrize("last", [[], [Join(2)]], ids=["tuple", "tensor"])
    def test_the_state_has_the_same_form(self, last) -> None:
        net = InvertibleSequential(Scale(4, 1), Split(2), *last)
        x = torch.randn(2, 4, 3, requires_grad=True)
        found, expected = compiled(net)(x), net(x)
        assert type(found) is type(expected)
        if isinstance(found, Tensor):
            found, expected = (found,), (expected,)
        assert_all_equal(found, expected)

    def test_memory_is_flat_in_depth(self) -> None:
        def live(depth: int) -> float:
            torch._dynamo.reset()
            layers = [Split(2), *[Between(2, 2) for _ in range(depth)], Join(2)]
            net = InvertibleSequential(*layers, anchors=0, guard=None)
            function, x = compiled(net), torch.randn(2, 4, 64)
            function(x).sum().backward()
            return measure_memory(lambda: function(x)).live / x.nbytes

        assert live(1) == live(4) == 1.0

    @pytest.mark.parametrize("guard", ["raise", None])
    def test_a_wrong_inverse_of_a_part_raises(self, guard) -> None:
        wrong = Wrong(Scale(2, 1), 0) if guard is None else OnPart(Clamped(), 1)
        layers = [Split(2), Between(2, 4), wrong, Between(2, 4), Join(2)]
        net = InvertibleSequential(*layers, anchors=0, guard=guard).double()
        x = torch.randn(2, CHANNELS, 4, dtype=torch.float64, requires_grad=True)
        loss = weighed(compiled(net)(x))
        with pytest.raises(RuntimeError, match=r"layer 2 \((Wrong|PartLayer)\)"):
            loss.backward()

    def test_inverse_with_another_number_of_tensors_is_refused(self) -> None:
        net = InvertibleSequential(Scale(2, 0), Split(), Forgetful(), anchors=0)
        x = torch.randn(3, 2, requires_grad=True)
        with pytest.raises(Exception, match="returned 1 tensors, but the layer"):
            compiled(net)(x).sum().backward()
