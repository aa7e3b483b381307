"""What a layer reads besides its arguments is brought back for its replay."""

import copy

import torch
from torch import nn

from invtorch import AdditiveCoupling
from tests.parts import Conditioner
from tests.stacks import alternating, both, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def test_dropout_repeats_its_mask(anchors) -> None:
    net, x = stack(anchors, dropout=0.5), sample(requires_grad=True)
    net.train()

    def two_forwards_before_one_backward():
        first, second = net(x), net(x)
        return torch.autograd.grad(
            weighed(first) + weighed(second * 2), parameters(net)
        )

    assert_all_equal(*both(net, two_forwards_before_one_backward))


def test_backward_leaves_the_random_state_alone(anchors) -> None:
    net = stack(anchors, dropout=0.5)
    loss = weighed(net(sample(requires_grad=True)))
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_with_eval_called_before_backward(anchors) -> None:
    net, x = stack(anchors, dropout=0.5), sample(requires_grad=True)

    def gradients():
        net.train()
        loss = weighed(net(x))
        net.eval()
        return torch.autograd.grad(loss, [x, *parameters(net)])

    assert_all_equal(*both(net, gradients))
    assert not any(module.training for module in net.modules())


def test_batch_norm_moves_its_statistics_once(anchors) -> None:
    class Normalized(Conditioner):
        def __init__(self):
            super().__init__(2, 2)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(super().forward(x))

    layers = [AdditiveCoupling(Normalized()) for _ in range(10)]
    net = alternating(layers, anchors=anchors).double()
    x = sample(requires_grad=True)
    initial = copy.deepcopy(net.state_dict())

    def gradients_and_statistics():
        net.load_state_dict(initial)
        gradients = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        return [*gradients, *[b.double().clone() for b in net.buffers()]]

    assert_all_equal(*both(net, gradients_and_statistics))
    assert {b.item() for n, b in net.named_buffers() if "num_batches" in n} == {1}
