"""The other things that people do with a network, and with the tools around it."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.devices import DEVICE
from tests.parts import Conditioner, Scale
from tests.stacks import alternating, both, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal


def test_checkpoint_around_and_inside(anchors) -> None:
    class Inside(Conditioner):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    layers = [AdditiveCoupling(Inside(2, 2)) for _ in range(10)]
    net = alternating(layers, anchors=anchors).double()
    x = sample(requires_grad=True)

    def gradients():
        y = checkpoint(net, x, use_reentrant=False)
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_the_older_checkpoint_inside_is_refused_by_pytorch_and_the_layer_named() -> (
    None
):
    class Inside(Conditioner):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=True)

    layers = [AdditiveCoupling(Inside(2, 2)) for _ in range(3)]
    net = alternating(layers, anchors=0).double()
    loss = weighed(net(sample(requires_grad=True)))
    with pytest.raises(RuntimeError, match="set use_reentrant=False") as caught:
        loss.backward()
    assert caught.value.__notes__ == [
        "in layer 5 (AdditiveCoupling) of an invertible container"
    ]


def test_copies_and_pickles_compute_the_same(anchors) -> None:
    net, x = stack(anchors), sample()
    net(x).sum().backward()

    def gradients(net):
        return torch.autograd.grad(weighed(net(x)), parameters(net))

    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), net(x))
        assert_all_equal(gradients(copied), gradients(net))
        assert list(copied.state_dict()) == list(net.state_dict())
        assert copied.anchors == anchors


def test_backward_hooks_of_a_layer_see_it_once(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    seen = []
    net[3].register_full_backward_hook(lambda _, gx, gy: seen.append((*gx, *gy)))

    def gradients():
        seen.clear()
        weighed(net(x)).backward()
        (pair,) = seen
        return pair

    assert_all_equal(*both(net, gradients))


def test_checkpoint_around_a_part_and_selective_recomputation(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        h = checkpoint(lambda t: net(torch.sin(t)) * 2, x, use_reentrant=False)
        return torch.autograd.grad(weighed(h), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_saved_tensors_on_the_cpu(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        with torch.autograd.graph.save_on_cpu():
            y = net(torch.sin(x))
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_safetensors(anchors, tmp_path) -> None:
    net, x = stack(anchors), sample()
    save_model(net, tmp_path / "net.safetensors")
    other = stack(anchors)
    load_model(other, tmp_path / "net.safetensors")
    assert torch.equal(net(x), other(x))


def test_weights_of_one_strategy_load_into_another(anchors) -> None:
    net, x = stack(anchors), sample()
    for memory in ("store", "checkpoint", "invert"):
        other = stack(0)
        other.memory = memory
        other.load_state_dict(net.state_dict())
        assert_equal(other(x), net(x))


def test_the_meta_device(anchors) -> None:
    with torch.device("meta"):
        net = stack(anchors)
        y = net(torch.empty(2, 4, 5, 4, dtype=torch.float64))
    assert y.shape == (2, 4, 5, 4)
    y.sum().backward()
    assert all(p.grad.is_meta for p in net.parameters())
    net.to_empty(device=DEVICE).load_state_dict(stack(anchors).state_dict())
    assert net(sample()).isfinite().all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_export(direction) -> None:
    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = stack(3, depth=4)

        def forward(self, x):
            return getattr(self.net, direction)(x)

    model, x = Exported(), sample()
    program = torch.export.export(model, (x,))
    assert_equal(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        with torch.autograd.detect_anomaly():
            return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_gradients_in_batches(anchors) -> None:
    net, x = stack(anchors, depth=4), sample(batch=1, requires_grad=True)
    directions = torch.eye(5, x.numel(), dtype=x.dtype).view(5, *x.shape)

    def gradients():
        return torch.autograd.grad(net(x), x, directions, is_grads_batched=True)

    assert_all_equal(*both(net, gradients))
    net.memory = "invert"
    y = net(x)
    with pytest.raises(RuntimeError, match="is_grads_batched=True"):
        torch.vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0])(
            directions
        )


def test_directions_that_are_those_of_another_class_swapped(anchors) -> None:
    class Turned(Scale):
        forward = Scale.inverse
        inverse = Scale.forward

    class Written(Scale):
        forward = lambda self, x: Scale.inverse(self, x)  # noqa: E731
        inverse = lambda self, y: Scale.forward(self, y)  # noqa: E731

    for kind in (Turned, Written):
        layers = [AdditiveCoupling(Conditioner(2, 2)), kind(4), kind(4)]
        net = InvertibleSequential(*layers, anchors=anchors, guard=None).double()
        x = sample(requires_grad=True)

        def gradients(net=net, x=x):
            return torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])

        assert_all_equal(*both(net, gradients))
