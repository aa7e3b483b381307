"""The other things that people do with a network, and with the tools around it."""

import copy
import pickle

import torch
from torch.utils.checkpoint import checkpoint

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.parts import Conditioner
from tests.stacks import both, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def test_checkpoint_around_and_inside(anchors) -> None:
    class Inside(Conditioner):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    layers = [AdditiveCoupling(Inside(2, 2)) for _ in range(10)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)

    def gradients():
        y = checkpoint(net, x, use_reentrant=False)
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_copies_and_pickles_compute_the_same(anchors) -> None:
    net, x = stack(anchors), sample()
    net(x).sum().backward()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), net(x))
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
