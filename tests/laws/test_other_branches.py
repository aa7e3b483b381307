"""A replay that takes another branch than the forward pass is refused, or right.

What decides on the branch is nothing that a replay restores: an iterator, a list that
is emptied, a counter in a closure. The last layers are initialized with zeros, so that
no comparison of values can show which branch was taken; only its gradients differ.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    ReversibleBlock,
)
from invtorch.nets.irim import GradientUpdate
from tests.laws.test_randomness import OfNothing, Own, splines, zeros
from tests.stacks import parameters
from tests.strategies import network_seeds, weighed
from tests.tolerances import assert_all_equal

Turns = Callable[[], bool]


def of_an_iterator(turns: list[bool]) -> Turns:
    return functools.partial(next, itertools.cycle(turns))


def of_a_list(turns: list[bool]) -> Turns:
    left: list[bool] = []

    def turn() -> bool:
        if not left:
            left.extend(turns)
        return left.pop(0)

    return turn


def of_a_counter(turns: list[bool]) -> Turns:
    count = 0

    def turn() -> bool:
        nonlocal count
        count += 1
        return turns[count % len(turns)]

    return turn


class Switched(nn.Module):
    """A conditioner that is another one at every turn."""

    def __init__(self, outputs: int, turn: Turns) -> None:
        super().__init__()
        self.outputs = outputs
        self.turn = turn

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.at(self.turn(), x)


class Slim(Switched):
    """One of two widths."""

    def __init__(self, outputs: int, turn: Turns) -> None:
        super().__init__(outputs, turn)
        self.first, self.last = nn.Linear(2, 5), zeros(5, outputs)

    def at(self, turn: bool, x: Tensor) -> Tensor:
        width = 3 if turn else 5
        h = (x @ self.first.weight[:width].T).tanh()
        return h @ self.last.weight[:, :width].T


class Experts(Switched):
    """One of two networks of the same form."""

    widths = (3, 3)

    def __init__(self, outputs: int, turn: Turns) -> None:
        super().__init__(outputs, turn)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(2, n), nn.Tanh(), zeros(n, outputs))
            for n in self.widths
        )

    def at(self, turn: bool, x: Tensor) -> Tensor:
        return self.experts[turn](x)


class UnequalExperts(Experts):
    """One of two networks of different widths."""

    widths = (3, 4)


class Gates(Switched):
    """One of two factors of the same shape."""

    def __init__(self, outputs: int, turn: Turns) -> None:
        super().__init__(outputs, turn)
        self.first = nn.Linear(2, outputs)
        self.gates = nn.ParameterList([torch.zeros(outputs) for _ in range(2)])

    def at(self, turn: bool, x: Tensor) -> Tensor:
        return self.first(x).tanh() * self.gates[turn]


def scaled(make: Callable[[int], nn.Module]) -> InvertibleModule:
    """Return a coupling whose function of the scale is one of two, and nothing else."""
    turn = make(4).turn

    def scale(a: Tensor) -> Tensor:
        return a.tanh() + a.sin() if turn() else a.tanh()

    return AffineCoupling(zeros(2, 4), scale=scale)


KINDS = [Slim, Experts, UnequalExperts, Gates]
SOURCES = [of_an_iterator, of_a_list, of_a_counter]
LAYERS: dict[str, Callable[[Callable[[int], nn.Module]], InvertibleModule]] = {
    "additive": lambda make: AdditiveCoupling(make(2)),
    "affine": lambda make: AffineCoupling(make(4)),
    "orthogonal": lambda make: OrthogonalCoupling(make(2), channels=4),
    "two-sided": lambda make: ReversibleBlock(make(2), make(2)),
    "scaled": scaled,
    "spline": splines,
    "gradient": lambda make: GradientUpdate(make(2), 2),
    "conditional": lambda make: ConditionalAffine(OfNothing(make(8))),
    "own": lambda make: Own(make(2)),
}


def network(drawn: list[tuple], seed: int, **options: object) -> InvertibleSequential:
    torch.manual_seed(seed)
    layers = [
        LAYERS[name](lambda outputs, k=kind, s=source, t=turns: k(outputs, s(t)))
        for name, kind, source, turns in drawn
    ]
    return InvertibleSequential(*layers, **options).double()


def gradients(net: InvertibleSequential, x: Tensor, computed: bool) -> Iterator:
    own = parameters(net)
    wanted = [x, *own] if x.requires_grad else own
    if computed:
        values = {n: p * 1 for n, p in net.named_parameters()}
        y = torch.func.functional_call(net, values, (x,))
    else:
        y = net(x)
    return torch.autograd.grad(weighed(y), wanted, allow_unused=True)


turns = st.lists(st.booleans(), min_size=1, max_size=4)
layers = st.tuples(
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(KINDS),
    st.sampled_from(SOURCES),
    turns,
)


@given(
    st.lists(layers, min_size=1, max_size=4),
    st.sampled_from(["invert", "checkpoint", "offload"]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    network_seeds,
)
def test_gradients_are_right_or_refused(
    drawn, memory, anchors, needs_grad, computed, seed
) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=needs_grad)
    stored = network(drawn, seed, memory="store")
    net = network(drawn, seed, memory=memory, anchors=anchors)
    expected = gradients(stored, x, computed)
    with suppress(RuntimeError):
        found = gradients(net, x, computed)
        assert_all_equal(found, expected)
