"""What surrounds a pass: a replay finds it as it was, as checkpointing does.

Each situation is run with a container and with `torch.utils.checkpoint` around each of
its layers.
"""

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from invtorch import AdditiveCoupling, InvertibleSequential, OrthogonalCoupling
from tests.parts import Conditioner
from tests.stacks import both, gradients_of, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

DEPTH = 10


class Makes(Conditioner):
    """A conditioner that makes a tensor, of the dtype and device that are default."""

    def forward(self, x):
        third = torch.full((1,), 1 / 3)
        scale = 1.0 if third.is_meta else third.double()
        return super().forward(x) * scale + third.element_size()


def network(anchors: int, **options) -> InvertibleSequential:
    layers = [
        OrthogonalCoupling(Makes(2, 2), channels=4)
        if i % 2
        else AdditiveCoupling(Makes(2, 2))
        for i in range(DEPTH)
    ]
    return InvertibleSequential(*layers, anchors=anchors, **options).double()


def checkpointed(net: InvertibleSequential):
    """Return a function that checkpoints every layer of a network."""
    net.memory = "store"

    def forward(x):
        for layer in net:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    return forward


def in_context(net, x, context, forward=None):
    """Compute gradients of a pass in a context, and leave it before backward."""
    with context:
        y = (forward or net)(x)
    return torch.autograd.grad(weighed(y), [x, *parameters(net)])


def compared(net, x, make) -> None:
    """Compare a container, checkpoints and plain autograd in a context."""
    expected, found = both(net, lambda: in_context(net, x, make()))[::-1]
    assert_all_equal(found, expected)
    assert_all_equal(in_context(net, x, make(), checkpointed(net)), expected)


def test_the_default_device(anchors) -> None:
    x = sample(requires_grad=True)
    compared(network(anchors), x, lambda: torch.device("meta"))


class DefaultDtype:
    """Makes double precision the default."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def test_the_default_dtype(anchors) -> None:
    """Checkpointing raises where the dtype of a saved tensor differs."""
    net, x = network(anchors), sample(requires_grad=True)
    assert_all_equal(*both(net, lambda: in_context(net, x, DefaultDtype())))
    assert torch.get_default_dtype() is torch.float32


class Doubled(TorchFunctionMode):
    """Lets convolutions return twice what they do."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        return 2 * found if function is F.conv2d else found


def test_a_function_mode(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    assert_all_equal(*both(net, lambda: in_context(net, x, Doubled())))


def test_a_function_mode_of_the_backward_pass_alone(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)

    def gradients():
        y = net(x)
        with Doubled():
            return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    expected, found = both(net, gradients)[::-1]
    assert_all_equal(found, expected)


class Packing:
    """Hooks that copy what is saved, and count."""

    def __init__(self) -> None:
        self.packed, self.unpacked = 0, 0

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor):
        self.packed += 1
        return tensor.clone(), "packed"

    def unpack(self, pair):
        self.unpacked += 1
        return pair[0]


@pytest.mark.parametrize("closed_form", [True, False])
def test_hooks_of_saved_tensors_see_the_states_that_are_kept(closed_form) -> None:
    x = sample(requires_grad=True)
    for anchors in (0, 3):
        net = stack(anchors) if closed_form else network(anchors)
        expected, _ = both(net, lambda n=net: in_context(n, x, Packing().hooks()))[::-1]
        packing, net.memory = Packing(), "invert"
        found = in_context(net, x, packing.hooks())
        assert_all_equal(found, expected)
        # the input, the anchors and the last state
        assert packing.packed == packing.unpacked == anchors + 2


@pytest.mark.parametrize("memory", ["invert", "checkpoint", "store", "offload"])
def test_save_on_cpu(anchors, memory) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    expected, _ = both(net, gradients_of(net, x))[::-1]
    net.memory = memory
    assert_all_equal(in_context(net, x, save_on_cpu()), expected)


def test_hooks_of_saved_tensors_of_two_backward_passes(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)

    def gradients():
        with Packing().hooks():
            y = net(x)
            first = torch.autograd.grad(weighed(y), x, retain_graph=True)
            return first + torch.autograd.grad(weighed(y), x, create_graph=True)

    assert_all_equal(*both(net, gradients))


def test_a_packed_state_that_is_changed_in_place() -> None:
    net, x = network(0), sample(requires_grad=True)
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        y = net(x)
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="was modified in place after the forward"):
        y.sum().backward()


def test_checkpoint_around_a_container_keeps_no_state() -> None:
    net, x = network(3), sample(requires_grad=True)
    evaluations = lambda: sum(layer.conditioner.evaluations for layer in net)  # noqa: E731
    y = checkpoint(net, x, use_reentrant=False)
    assert evaluations() == DEPTH
    found = torch.autograd.grad(weighed(y), [x, *parameters(net)])
    assert evaluations() == 3 * DEPTH  # the pass once more, and the replays
    net.memory = "store"
    assert_all_equal(found, gradients_of(net, x)())


def convolutions(net, x, forward) -> tuple[int, dict[str, int]]:
    with FlopCounterMode(display=False) as counter, set_checkpoint_early_stop(False):
        weighed(forward(x)).backward()
    counts = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), {str(k): v for k, v in counts.items()}


def test_flops_are_those_of_checkpoints(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    found = convolutions(net, x, net)
    assert found == convolutions(net, x, checkpointed(net))
    plain = convolutions(net, x, net)  # with memory="store"
    assert found[0] > plain[0]


def test_a_tracker_knows_the_module_of_every_replay(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    seen: list[tuple[bool, bool]] = []
    with ModuleTracker() as tracker:

        def note(module: nn.Module, *_) -> None:
            names = (tracker.parents, tracker.is_bw)
            seen.append((any("conditioner" in one for one in names[0]), names[1]))

        for layer in net:
            layer.conditioner.first.register_forward_hook(note)
        weighed(net(x)).backward()
    assert seen == [(True, False)] * DEPTH + [(True, True)] * DEPTH
