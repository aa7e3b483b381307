"""The parts of a tuple state are each judged by their own size."""

import pytest
import torch
from torch import nn

from invtorch import DriftError, InvertibleModule, InvertibleSequential
from tests.parts import Leapfrog


class Wrong(InvertibleModule):
    """A layer whose inverse is wrong in the first part, and hands the second on."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, state):
        a, other = state
        return a * self.w.exp() + a.sin(), other

    def inverse(self, state):
        a, other = state
        return a / self.w.exp(), other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "other",
    [
        torch.full((2, 3), 50_000),
        torch.full((2, 3), 10**12),
        torch.full((2, 3), 1e9),
        torch.full((2, 3), 1e9, dtype=torch.float64),
        torch.ones(2, 3, dtype=torch.bool),
    ],
    ids=["tokens", "large integers", "large", "large and fine", "a mask"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_part_of_another_size_hides_nothing(other, dtype, first) -> None:
    class Swapped(Wrong):
        def forward(self, state):
            return super().forward(state[::-1])[::-1]

        def inverse(self, state):
            return super().inverse(state[::-1])[::-1]

    layer = Wrong if first else Swapped
    net = InvertibleSequential(*[layer() for _ in range(3)], anchors=0).to(dtype)
    a = torch.linspace(-1, 1, 6, dtype=dtype).view(2, 3).requires_grad_()
    output = net((a, other) if first else (other, a))
    loss = output[0 if first else 1].square().sum()
    with pytest.raises(DriftError, match="is off by"):
        loss.backward()


class Off(InvertibleModule):
    """A layer whose inverse brings back other integers."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, state):
        a, ids = state
        return a * self.w.exp(), ids + 1

    def inverse(self, state):
        a, ids = state
        return a / self.w.exp(), ids - 1 + (ids == 10**6)


def test_integers_must_come_back_exactly() -> None:
    net = InvertibleSequential(Off(), Off(), anchors=0)
    ids = torch.arange(10**6 - 5, 10**6 + 5)
    a = torch.randn(10, requires_grad=True)
    with pytest.raises(DriftError, match="differs where there were zeros or integers"):
        net((a, ids))[0].sum().backward()


def test_a_momentum_that_starts_from_zero_passes_the_guard() -> None:
    torch.manual_seed(0)
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(50)], anchors=0)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    net((x, torch.zeros_like(x)))[0].square().sum().backward()


@pytest.mark.parametrize("memory", ["invert", "store"])
def test_a_finer_state_leaves_integers_as_they_are(memory) -> None:
    class Hands(InvertibleModule):
        def forward(self, state):
            return state

        def inverse(self, state):
            return state

    net = InvertibleSequential(Hands(), state_dtype=torch.float32, memory=memory)
    ids = torch.full((2, 3), 2**25 + 1)
    a = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    output, found = net((a, ids))
    assert output.dtype == torch.float64
    assert torch.equal(found, ids)
