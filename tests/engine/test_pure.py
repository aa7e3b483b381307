"""Layers whose derivative is known: right where it is used, and used only if right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.engine import tape
from tests.parts import known
from tests.stacks import both, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

DEPTH = 10


def coupling(i: int, conditioner: nn.Module, half: int) -> nn.Module:
    if i % 2:
        return AdditiveCoupling(conditioner)
    return OrthogonalCoupling(conditioner, channels=2 * half)


def gated(half: int) -> nn.Module:
    return GatedResidualBlock(half, half, hidden=3, stride=2)


def chained(half: int) -> nn.Module:
    return known(half, half)


def network(anchors: int, block: Callable[[int], nn.Module] = gated, half: int = 2):
    layers = [coupling(i, block(half), half) for i in range(DEPTH)]
    return InvertibleSequential(*layers, anchors=anchors).double()


@pytest.fixture
def frames(monkeypatch):
    """Count the calls that are found to be pure."""
    found: list[object] = []

    def watched(*call):
        frame = original(*call)
        found.append(frame)
        return frame

    original = tape.pure_frame
    monkeypatch.setattr(tape, "pure_frame", watched)
    return found


def gradients_of(net, x):
    def gradients():
        tensors = [x, *(p for p in net.parameters() if p.requires_grad)]
        return grad(weighed(net(x)), tensors, allow_unused=True)

    return gradients


def test_nothing_is_saved_by_a_pure_layer(frames) -> None:
    net, x = network(0), sample(requires_grad=True)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = net(x)
    assert len(frames) == DEPTH
    assert all(frames)
    assert saved == []
    y.sum().backward()


def unused(net):
    net[3].conditioner.idle = nn.Linear(2, 2).double()


def tied(net):
    net[2].conditioner.gather.bias = net[2].conditioner.look.bias
    net[4].vectors = net[6].vectors


def frozen(net):
    net[2].requires_grad_(False)
    net[4].conditioner.look.requires_grad_(False)
    net[5].conditioner.gather.bias.requires_grad_(False)


def all_frozen(net):
    net.requires_grad_(False)


@pytest.mark.parametrize("change", [unused, tied, frozen, all_frozen])
@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_parameters_of_all_kinds(anchors, frames, change, memory) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    change(net)
    expected = gradients_of(net, x)
    net.memory = "store"
    oracle = expected()
    frames.clear()
    net.memory = memory
    assert_all_equal(expected(), oracle)
    assert all(frames)


class Twice(nn.Module):
    """A parametrization that doubles."""

    def forward(self, weight):
        return 2 * weight


class Derived(GatedResidualBlock):
    """A block that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked(net):
    net[2].conditioner.register_forward_hook(lambda *call: 2 * call[-1])


def hooked_inside(net):
    net[3].conditioner.look.register_forward_pre_hook(lambda _, x: (x[0] * 2,))


def hooked_backward(net):
    net[3].conditioner.spread.register_full_backward_hook(
        lambda _, gradient, __: tuple(g and None if g is None else g for g in gradient)
    )


def patched(net):
    look = net[2].conditioner.look
    original = look.forward
    look.forward = lambda h: 2 * original(h)


def derived(net):
    net[2].conditioner = Derived(2, 2, hidden=3, stride=2).double()


def other_padding(net):
    net[2].conditioner.look.padding_mode = "circular"


def doubly_parametrized(net):
    parametrize.register_parametrization(net[2].conditioner.look, "weight", Twice())


def parametrized_bias(net):
    parametrize.register_parametrization(net[3].conditioner.gather, "bias", Twice())


def parametrized_layer(net):
    orthogonal(net[2], "vectors")


def writing(net):
    convolutions = [nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)]
    net[2].conditioner = nn.Sequential(*convolutions).double()


def in_other_precision(net):
    net[2].float()


def compiled(net):
    net[2].conditioner.compile(backend="eager")


OTHERS = [
    *(hooked, hooked_inside, hooked_backward, patched, derived, other_padding),
    *(doubly_parametrized, parametrized_bias, parametrized_layer, writing),
    *(in_other_precision, compiled),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("change", OTHERS)
def test_what_is_not_surely_pure_is_left_to_autograd(anchors, frames, change) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    change(net)
    found, expected = both(net, gradients_of(net, x))
    assert_all_equal(found, expected)
    assert frames.count(None) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions_are_left_to_autograd(frames, dtype) -> None:
    net, x = network(0).to(dtype), sample(requires_grad=True).to(dtype)
    net.memory = "checkpoint"
    net(x)
    assert len(frames) == DEPTH
    assert not any(frames)


def test_autocast_is_left_to_autograd(frames) -> None:
    net, x = network(0).float(), sample(requires_grad=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
    assert len(frames) == DEPTH
    assert not any(frames)


def test_a_global_hook_is_called(frames) -> None:
    net, x = network(0), sample(requires_grad=True)
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: called.append(module)
    )
    with handle:
        net(x)
    assert not any(frames)
    assert {layer.conditioner.look for layer in net} <= {*called}


def test_functional_call_with_the_backward_outside(anchors) -> None:
    net, x = network(anchors), sample()
    own = {name: p.detach() for name, p in net.named_parameters()}
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)

    def gradients():
        scaled = {name: p * factor for name, p in own.items()}
        y = functional_call(net, scaled, (x,))
        return grad(weighed(y), [factor])

    assert_all_equal(*both(net, gradients))


def exchange_a_part(net):
    net[2].conditioner = gated(2).double()


def exchange_a_parameter(net):
    net[4].vectors = nn.Parameter(torch.randn_like(net[4].vectors))


def exchange_an_attribute(net):
    net[3].conditioner.stride = (1, 1)
    net[5].split = 1


@pytest.mark.parametrize(
    "change",
    [exchange_a_part, exchange_a_parameter, exchange_an_attribute, hooked, patched],
)
@pytest.mark.parametrize("again", [False, True])
def test_what_changes_before_backward_does_not_matter(anchors, change, again) -> None:
    x = sample(requires_grad=True)

    def gradients(memory, changed):
        torch.manual_seed(0)
        net = network(anchors)
        net.memory = memory
        tensors = [x, *net.parameters()]
        y = net(x)
        changed(net)
        found = grad(weighed(y), tensors, create_graph=again)
        if again:
            squares = sum(g.square().sum() for g in found)
            found += grad(squares, tensors)
        return found

    assert_all_equal(gradients("invert", change), gradients("store", lambda _: None))


@pytest.mark.parametrize("half", [2, 12])
def test_batched_gradients(anchors, half) -> None:
    net = network(anchors, half=half)
    x = sample(2 * half, requires_grad=True)
    cotangents = torch.randn(3, *x.shape, dtype=torch.float64)

    def gradients():
        tensors = [x, *net.parameters()]
        return grad(net(x), tensors, cotangents, is_grads_batched=True)

    assert_all_equal(*both(net, gradients))


@pytest.mark.parametrize("block", [gated, chained])
def test_backward_under_autocast_keeps_the_precision_of_forward(anchors, block) -> None:
    net, x = network(anchors, block).float(), sample(requires_grad=True).float()

    def gradients(cast):
        loss = weighed(net(x))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return grad(loss, list(net.parameters()))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("memory", ["invert", "checkpoint"])
def test_parameters_changed_before_backward(memory) -> None:
    net = network(0)
    net.memory = memory
    y = net(sample(requires_grad=True))
    with torch.no_grad():
        net[3].conditioner.look.parametrizations.weight.original1.mul_(2)
    with pytest.raises(RuntimeError, match=r"^original1 of layer 3 .* modified in pla"):
        y.sum().backward()


def test_errors_name_the_layer_and_what_the_conditioner_returned() -> None:
    net = InvertibleSequential(OrthogonalCoupling(known(2, 3), channels=5)).double()
    net[0].conditioner[2] = nn.Conv2d(4, 2, 3, padding=1).double()
    with pytest.raises(ValueError, match="Sequential returned shape") as caught:
        net(sample(5, requires_grad=True))
    assert "layer 0 (OrthogonalCoupling)" in str(caught.value.__notes__)
