"""What a user writes, as a type checker reads it; nothing here is ignored."""

from typing import Literal, assert_type

import torch
from torch import Tensor, nn

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    Join,
    Split,
)


class Scale(InvertibleModule):
    """A layer of one's own, with types."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp()

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(x), self.log_scale.sum().expand(len(x))


class Conditional(InvertibleModule):
    """A layer that takes a context."""

    def forward(self, x: Tensor, context: Tensor, *, weight: float = 1.0) -> Tensor:
        return x + weight * context

    def inverse(self, y: Tensor, context: Tensor, *, weight: float = 1.0) -> Tensor:
        return y - weight * context


def chosen(cheap: bool) -> Literal["invert", "store"]:
    return "invert" if cheap else "store"


net = InvertibleSequential(
    AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1)),
    Householder1x1(4),
    Scale(4),
    memory=chosen(cheap=True),
    anchors=8,
    guard="raise",
)
x = torch.randn(2, 4, 8, 8)
y = net(x)
assert_type(y, Tensor)
torch.autograd.backward(y.square().mean())
assert_type(net[0], InvertibleModule)
assert_type(net[:1], InvertibleSequential)
assert_type(net[:1](x), Tensor)
assert_type(net[0](x), Tensor)
assert_type(Scale(4)(x), Tensor)
assert_type(Scale(4).inverse(x), Tensor)
assert_type(Conditional()(x, x, weight=0.5), Tensor)
assert_type([layer(x) for layer in net], list[Tensor])
pair = (x, x)
assert_type(net(pair), tuple[Tensor, Tensor])
assert_type(Split()(x), tuple[Tensor, ...])
assert_type(Join()(pair), Tensor)
net.memory = "auto"
net[0].memory = "checkpoint"
net.guard = None
optimizer = torch.optim.Adam(net.parameters())
optimizer.step()
