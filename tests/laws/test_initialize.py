"""Layers that set their parameters from the first batch do so once, in order."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    Join,
    OnPart,
    Parallel,
    Split,
    WithoutContext,
)
from tests.compilation import COMPILING, compiled
from tests.parts import Reverse, Scale
from tests.strategies import Example, anchors, assert_as_plain, memories, weighed
from tests.tolerances import assert_equal

CHANNELS = 3


class Normalize(InvertibleModule):
    """Subtracts the mean of the first batch and divides by its deviation."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1))
        self.calls: list[int] = []

    def initialize(self, x, *_, offset=0.0):
        self.calls.append(len(x))
        self.shift.copy_(x.mean((0, 2)).unsqueeze(1) - offset)
        self.log_scale.copy_(-x.std((0, 2)).log().unsqueeze(1))

    def forward(self, x, *_, offset=0.0):
        return (x - self.shift - offset) * self.log_scale.exp()

    def inverse(self, y, *_, offset=0.0):
        return y * (-self.log_scale).exp() + self.shift + offset

    def forward_and_log_det(self, x, *_, offset=0.0):
        log_det = (self.log_scale.sum() * x.shape[2]).expand(len(x))
        return self(x, offset=offset), log_det

    def inverse_and_log_det(self, y, *_, offset=0.0):
        log_det = (self.log_scale.sum() * y.shape[2]).expand(len(y))
        return self.inverse(y, offset=offset), -log_det


MEMBERS = {
    "normalize": lambda: Normalize(CHANNELS),
    "scale": lambda: Scale(CHANNELS, 1),
    "mix": lambda: Householder1x1(CHANNELS, reflections=2),
    "reverse": Reverse,
    "nested": lambda: InvertibleSequential(Normalize(CHANNELS), Reverse()),
    "on a part": lambda: InvertibleSequential(
        Split([1, 2]),
        OnPart(Normalize(1), 0),
        Parallel(None, InvertibleSequential(Normalize(2), Reverse())),
        Join([1, 2]),
    ),
    "without context": lambda: WithoutContext(Normalize(CHANNELS)),
}


def batch(count: int = 4):
    return torch.randn(count, CHANNELS, 5, dtype=torch.float64) * 3 + 2


@st.composite
def stacks(draw) -> InvertibleSequential:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    names = draw(st.lists(st.sampled_from(sorted(MEMBERS)), min_size=1, max_size=5))
    members = [MEMBERS[name]() for name in [*names, "normalize"]]
    if draw(st.booleans()):
        members.append(members[-1])
    return InvertibleSequential(*members, anchors=draw(anchors)).double()


def normalizers(net: nn.Module) -> list[Normalize]:
    return [m for m in net.modules() if isinstance(m, Normalize)]


def outputs(net: InvertibleSequential, x) -> dict[Normalize, torch.Tensor]:
    """Return what each normalizing layer returned the first time it was called."""
    seen: dict[Normalize, torch.Tensor] = {}

    def keep(module, _, y) -> None:
        seen.setdefault(module, y.detach().clone())

    hooks = [m.register_forward_hook(keep) for m in normalizers(net)]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


@given(stacks(), st.sampled_from([None, "invert", "checkpoint", "store"]))
def test_each_layer_sees_the_output_of_initialized_ones(net, memory) -> None:
    net.memory = memory
    for y in outputs(net, batch()).values():
        assert_equal(y.mean((0, 2)), torch.zeros(y.shape[1], dtype=torch.float64))
        assert_equal(y.std((0, 2)), torch.ones(y.shape[1], dtype=torch.float64))


@given(stacks(), memories)
def test_first_gradients_equal_those_of_an_initialized_copy(net, memory) -> None:
    x = batch().requires_grad_()
    known = copy.deepcopy(net)
    with torch.no_grad():
        known(x)
    net.memory, known.memory = memory, "store"
    expected = torch.autograd.grad(weighed(known(x)), [x, *known.parameters()])
    found = torch.autograd.grad(weighed(net(x)), [x, *net.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


@given(stacks(), memories)
def test_later_gradients_equal_plain_autograd(net, memory) -> None:
    net(batch())

    def gradients(example, strategy):
        return example.gradients(strategy)

    assert_as_plain(Example(net, batch().requires_grad_(), ()), memory, gradients)


@given(stacks(), st.sampled_from(["forward", "forward_and_log_det"]), st.booleans())
def test_initialized_once(net, direction, no_grad) -> None:
    with torch.set_grad_enabled(not no_grad):
        for count in (4, 6, 5):
            getattr(net, direction)(batch(count))
    assert all(m.calls == [4] and bool(m.initialized) for m in normalizers(net))


@given(stacks())
def test_a_resumed_run_does_not_initialize_again(net) -> None:
    fresh = copy.deepcopy(net)
    net(batch())
    fresh.load_state_dict(net.state_dict())
    x = batch()
    assert_equal(fresh(x), net(x))
    assert all(m.calls == [] for m in normalizers(fresh))


def averaged(net, fresh) -> None:
    model = torch.optim.swa_utils.AveragedModel(fresh)
    model.module = fresh
    model.update_parameters(net)


def in_place(net, fresh) -> None:
    """Write into the tensors of the state dict, as distributed checkpoints do."""
    for name, tensor in fresh.state_dict().items():
        tensor.copy_(net.state_dict()[name])


def exchanged(net, fresh) -> None:
    """Let the modules hold the tensors of others."""
    for there, here in zip(net.modules(), fresh.modules(), strict=True):
        vars(here)["_parameters"].update(vars(there)["_parameters"])
        vars(here)["_buffers"].update(vars(there)["_buffers"])


@given(
    stacks(),
    st.sampled_from([averaged, in_place, exchanged]),
    st.sampled_from(["forward", "forward_and_log_det", "inverse"]),
)
def test_a_model_that_is_given_values_does_not_initialize(net, give, direction) -> None:
    fresh = copy.deepcopy(net)
    net(batch())
    give(net, fresh)
    x = batch(5)
    found, expected = (getattr(model, direction)(x) for model in (fresh, net))
    if direction == "forward_and_log_det":
        (found, log_det), (expected, other) = found, expected
        assert_equal(log_det, other)
    assert_equal(found, expected)
    assert all(m.calls == [] for m in normalizers(fresh))


@given(stacks())
def test_a_copy_waits_as_the_original_does(net) -> None:
    before = copy.deepcopy(net)
    net(batch())
    before(batch(5)), copy.deepcopy(net)(batch(6))
    assert all(m.calls == [5] for m in normalizers(before))
    assert all(m.calls == [4] for m in normalizers(net))


@given(stacks(), st.sampled_from(["forward", "inverse", "inverse_and_log_det"]))
def test_evaluation_does_not_initialize(net, direction) -> None:
    getattr(net.eval(), direction)(batch())
    assert not any(m.calls or bool(m.initialized) for m in normalizers(net))


@given(stacks(), st.sampled_from(["inverse", "inverse_and_log_det"]))
def test_inverse_direction_is_refused_before(net, direction) -> None:
    with pytest.raises(RuntimeError, match="call `forward` on data first"):
        getattr(net, direction)(batch())
    net(batch())
    getattr(net, direction)(batch())


@given(stacks(), st.booleans())
def test_the_buffer_says_whether_it_is_initialized(net, loaded) -> None:
    """It may be written by hand, or be that of another network."""
    if loaded:
        other = copy.deepcopy(net)
        other(batch())
        values = dict([*other.named_parameters(), *other.named_buffers()])
        before = {name: value.clone() for name, value in values.items()}
        x = batch(5)
        assert_equal(torch.func.functional_call(net, values, (x,)), other(x))
        for name, value in values.items():
            assert torch.equal(value, before[name])
    else:
        for module in normalizers(net):
            module.initialized.fill_(True)
        net(batch(5))
    assert all(m.calls == [] for m in normalizers(net))
    for count in (6, 7):
        for module in normalizers(net):
            module.initialized.fill_(False)
        net(batch(count)), net(batch(3))
    assert all(m.calls == [6, 7] and bool(m.initialized) for m in normalizers(net))


def test_initialize_of_a_class_that_is_no_module() -> None:
    class FromData:
        calls = 0

        def initialize(self, _):
            self.calls += 1

    class Both(FromData, Scale):
        pass

    layer = Both(CHANNELS, 1).double()
    assert bool(layer(batch()).ndim and layer(batch()).ndim)
    assert layer.calls == 1
    assert layer.initialized


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@given(stacks(), st.sampled_from(["vmap", "grad", "jvp"]))
def test_it_is_refused_inside_of_a_transform(net, name) -> None:
    x = batch()
    transformed = {
        "vmap": lambda: torch.func.vmap(lambda t: net(t[None]))(x),
        "grad": lambda: torch.func.grad(lambda t: net(t).sum())(x),
        "jvp": lambda: torch.func.jvp(net, (x,), (x,)),
    }[name]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="call the model once on a batch before"):
        transformed()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net(x)
    transformed()


def test_a_layer_alone_initializes_too() -> None:
    layer, x = Normalize(CHANNELS).double(), batch()
    y = layer(x)
    assert_equal(y.mean((0, 2)), torch.zeros(CHANNELS, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="inverse direction"):
        Normalize(CHANNELS).inv(x)


def test_initialize_receives_context() -> None:
    net = InvertibleSequential(Normalize(CHANNELS), Normalize(CHANNELS)).double()
    y = net(batch(), offset=3.0)
    assert_equal(y.mean((0, 2)), torch.zeros(CHANNELS, dtype=torch.float64))


class TestCompiled:
    """Under `torch.compile`."""

    pytestmark = COMPILING

    def test_model_is_called_once_before(self) -> None:
        net = InvertibleSequential(Normalize(CHANNELS)).double()
        with pytest.raises(Exception, match="call the model once on a batch"):
            compiled(net)(batch())
        net(batch())
        x = batch()
        assert_equal(compiled(net)(x), net(x))
