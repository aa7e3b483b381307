"""What a layer reads besides its arguments is brought back for its replay."""

import copy

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling, InvertibleModule, InvertibleSequential
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


class Averaged(Conditioner):
    """A conditioner with statistics that begin with the first batch."""

    def __init__(self, registered: bool):
        super().__init__(2, 2)
        if registered:
            self.register_buffer("mean", None)

    def forward(self, x):
        y = super().forward(x)
        mean = y.detach().mean()
        if getattr(self, "mean", None) is not None:
            mean = self.mean + mean
        if "mean" not in self._buffers:
            self.register_buffer("mean", None)
        self.mean = mean
        return y - self.mean


@pytest.mark.parametrize("registered", [True, False])
def test_buffers_that_begin_with_the_first_batch_move_once(anchors, registered) -> None:
    x = sample(requires_grad=True)
    results = []
    for options in ({"anchors": anchors}, {"memory": "store"}):
        torch.manual_seed(1)
        layers = [AdditiveCoupling(Averaged(registered)) for _ in range(6)]
        net = alternating(layers, **options).double()
        found = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        names = [[*layer.conditioner._buffers] for layer in net[1::2]]
        assert names == [["mean"]] * 6
        results.append([*found, *net.buffers()])
    assert_all_equal(*results)


class Mixed(Conditioner):
    """A conditioner with a sparse buffer, as networks on graphs have."""

    def __init__(self):
        super().__init__(2, 2)
        matrix = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
        self.register_buffer("matrix", matrix.double().to_sparse())

    def forward(self, x):
        y = super().forward(x)
        return torch.sparse.mm(self.matrix, y.transpose(0, 1).flatten(1)).view_as(y)


def test_sparse_buffers(anchors) -> None:
    layers = [AdditiveCoupling(Mixed()) for _ in range(6)]
    net, x = alternating(layers, anchors=anchors).double(), sample(requires_grad=True)
    wanted = [x, *parameters(net)]
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), wanted)))


class Solved(InvertibleModule):
    """A layer whose inverse iterates from a random start."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.full((), 0.3))

    def forward(self, x):
        return x + self.slope * x.tanh()

    def inverse(self, y):
        x = y + 0.1 * torch.randn_like(y)
        for _ in range(100):
            x = y - self.slope * x.tanh()
        return x


def test_an_inverse_that_draws_leaves_the_random_state_alone(anchors) -> None:
    net = InvertibleSequential(*[Solved() for _ in range(6)], anchors=anchors).double()
    x = sample(requires_grad=True)

    def gradients():
        found = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        return [*found, torch.rand(3)]

    assert_all_equal(*both(net, gradients))
