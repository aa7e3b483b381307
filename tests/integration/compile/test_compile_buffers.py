"""Under `torch.compile` what a layer writes into its buffers is written once."""

import copy

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.compilation import COMPILING, compiled
from tests.parts import Conditioner
from tests.stacks import sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = [*COMPILING, pytest.mark.slow]


class Moving(Conditioner):
    """A conditioner that moves its buffers by functions that no module shows."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        h = super().forward(x)
        return nn.functional.batch_norm(h, self.mean, self.var, training=True)


def test_buffers_move_once() -> None:
    net = InvertibleSequential(*[AdditiveCoupling(Moving()) for _ in range(2)]).double()
    x, plain = sample(requires_grad=True), copy.deepcopy(net)
    weighed(plain(x)).backward()
    weighed(compiled(net)(x)).backward()
    assert_all_equal(
        [p.grad for p in net.parameters()], [p.grad for p in plain.parameters()]
    )
    assert_all_equal(list(net.buffers()), list(plain.buffers()))
