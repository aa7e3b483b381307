"""A layer may draw from any generator: gradients are those of the same draws.

The last layers of the branches that are drawn are initialized with zeros, so that no
comparison of values can show that a replay took another branch.
"""

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy
import pytest
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
    SplineCoupling,
)
from invtorch.nets.irim import GradientUpdate
from tests.stacks import another_thread, parameters
from tests.strategies import network_seeds, weighed
from tests.tolerances import assert_all_equal


@dataclass
class Kind:
    """A kind of randomness: what a module holds, and how it draws a number from it."""

    make: Callable[[], object]
    draw: Callable[[object], float]


def on_cpu(*size: int, **options: object) -> float:
    return float(torch.rand(*size, device="cpu", **options)[0])


KINDS = {
    "PyTorch": Kind(lambda: None, lambda _: on_cpu(1)),
    "Python": Kind(lambda: None, lambda _: random.random()),
    "Python, in pairs": Kind(lambda: None, lambda _: random.gauss() % 1),
    "NumPy": Kind(lambda: None, lambda _: numpy.random.rand()),
    "NumPy, in pairs": Kind(lambda: None, lambda _: numpy.random.randn() % 1),
    "an own torch.Generator": Kind(torch.Generator, lambda g: on_cpu(1, generator=g)),
    "an own random.Random": Kind(lambda: random.Random(1), lambda g: g.random()),
    "an own Generator of NumPy": Kind(
        lambda: numpy.random.default_rng(1), lambda g: g.random()
    ),
    "an own RandomState": Kind(lambda: numpy.random.RandomState(1), lambda g: g.rand()),
}
UNREAD = ("Python", "Python, in pairs", "NumPy", "NumPy, in pairs")


def zeros(inputs: int, outputs: int) -> nn.Linear:
    last = nn.Linear(inputs, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return last


class Branches(nn.Module):
    """A conditioner that leaves out a layer, or takes another one, at random."""

    def __init__(self, kind: Kind, outputs: int, share: float) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.deeper = nn.Linear(3, 3)
        self.last = nn.ModuleList([zeros(3, outputs), zeros(3, outputs)])
        self.share = share
        self.draw = kind.draw
        self.generator = kind.make()

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if not self.share:
            return self.last[0](h)
        if self.draw(self.generator) < self.share:
            h = h + self.deeper(h).sin()
        return self.last[self.draw(self.generator) < self.share](h)


class Own(InvertibleModule):
    """A coupling whose replay is that of any layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1)
        return torch.cat([x2 + self.network(x1, *context), x1], 1)

    def inverse(self, y: Tensor, *context: Tensor) -> Tensor:
        y1, y2 = y.chunk(2, 1)
        return torch.cat([y2, y1 - self.network(y2, *context)], 1)


class OfNothing(nn.Module):
    """A conditioner without an argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("x", torch.ones(1, 2))

    def forward(self, *_: Tensor) -> Tensor:
        return self.network(self.x)


def scaled(kind: Kind, share: float) -> AffineCoupling:
    """Return a coupling whose function of the scale draws, and nothing else."""

    def scale(a: Tensor) -> Tensor:
        drawn = layer.share and kind.draw(layer.generator) < layer.share
        return a.tanh() + a.sin() if drawn else a.tanh()

    layer = AffineCoupling(zeros(2, 4), scale=scale)
    layer.share, layer.generator = share, kind.make()
    return layer


def splines(network: Callable[[int], nn.Module]) -> SplineCoupling:
    return SplineCoupling(network(2 * 11), bins=4)


def two_sided(kind: Kind, share: float, **options: object) -> ReversibleBlock:
    f, g = (Branches(kind, 2, share) for _ in range(2))
    return ReversibleBlock(f, g, **options)


LAYERS = {
    "two-sided": two_sided,
    "two-sided by a mask": functools.partial(
        two_sided, split=torch.tensor([True, False, False, True])
    ),
    "additive": lambda kind, p: AdditiveCoupling(Branches(kind, 2, p)),
    "affine": lambda kind, p: AffineCoupling(Branches(kind, 4, p)),
    "orthogonal": lambda kind, p: OrthogonalCoupling(Branches(kind, 2, p), channels=4),
    "scaled": scaled,
    "spline": lambda kind, p: splines(lambda n: Branches(kind, n, p)),
    "gradient": lambda kind, p: GradientUpdate(Branches(kind, 2, p), 2),
    "conditional": lambda kind, p: ConditionalAffine(OfNothing(Branches(kind, 8, p))),
    "own": lambda kind, p: Own(Branches(kind, 2, p)),
}


def seed_all(seed: int, net: nn.Module) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    for i, module in enumerate(net.modules()):
        seed_one(getattr(module, "generator", None), seed + i)


def seed_one(generator: object, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = numpy.random.PCG64(seed).state
    elif generator is not None:
        generator.seed(seed % 2**32)


def drawn_next(net: nn.Module) -> list[float]:
    """Draw from every generator, to see where it stands."""
    held = [m for m in net.modules() if isinstance(m, Branches)]
    found = [m.draw(m.generator) for m in held]
    return [*found, *(KINDS[name].draw(None) for name in ("PyTorch", *UNREAD))]


def step(net: nn.Module, x: Tensor, seed: int, passes: int) -> tuple:
    seed_all(seed, net)
    wanted = [x, *parameters(net)]
    losses = [weighed(net(x)) for _ in range(passes)]
    found = torch.autograd.grad(sum(losses), wanted, allow_unused=True)
    return found, drawn_next(net)


def network(names: list[str], kinds: list[Kind], share: float, **options):
    layers = [LAYERS[n](kind, share) for n, kind in zip(names, kinds, strict=True)]
    return InvertibleSequential(*layers, **options).double()


names = st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6)
memories = st.sampled_from(["invert", "checkpoint", "offload"])


@given(st.data(), names, memories, st.integers(0, 2), network_seeds, st.integers(1, 2))
def test_gradients_are_those_of_the_same_draws(
    data, names, memory, anchors, seed, passes
) -> None:
    drawn = [data.draw(st.sampled_from(sorted(KINDS))) for _ in names]
    net = network(names, [KINDS[k] for k in drawn], 0.5, anchors=anchors)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for i in range(3):  # the first calls of a layer learn whether it draws
        net.memory = "store"
        expected, after = step(net, x, seed + i, passes)
        net.memory = memory
        found, after_replay = step(net, x, seed + i, passes)
        assert_all_equal(present(found), present(expected))
        assert [g is None for g in found] == [g is None for g in expected]
        assert after == after_replay


def present(gradients: tuple) -> list[Tensor]:
    return [g for g in gradients if g is not None]


class Holder:
    """An object with attributes."""

    def __init__(self, held: object) -> None:
        self.held = held


class Slotted:
    """An object with slots."""

    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held


@dataclass
class Settings:
    """A dataclass."""

    held: object


# where a generator may be held, and how it is found there
PLACES = {
    "itself": (lambda g: g, lambda held: held),
    "list": (lambda g: [0, g], lambda held: held[1]),
    "tuple": (lambda g: (g, "a"), lambda held: held[0]),
    "dictionary": (lambda g: {"a": {"b": g}}, lambda held: held["a"]["b"]),
    "object": (Holder, lambda held: held.held),
    "object with slots": (Slotted, lambda held: held.held),
    "dataclass": (Settings, lambda held: held.held),
    "deep": (lambda g: {"a": [Holder((g,))]}, lambda held: held["a"][0].held[0]),
    "partial": (lambda g: functools.partial(int, g), lambda held: held.args[0]),
    "closure": (lambda g: lambda: g, lambda held: held()),
}
OF_ALL = [None]  # a global variable


class Noisy(nn.Module):
    """A conditioner that multiplies by random numbers, and returns zeros."""

    def __init__(self, outputs: int, draw: Callable, find: Callable, held: object):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), zeros(3, outputs)
        self.draw, self.find, self.held = draw, find, held

    def forward(self, x: Tensor, *context: object) -> Tensor:
        generator = self.find(context[0] if context else self.held)
        return self.last(self.first(x).tanh() * (0.5 + self.draw(generator)))


class NoisyByGlobal(Noisy):
    """The same, of a generator that is a global variable."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return self.last(self.first(x).tanh() * (0.5 + self.draw(of_all())))


def of_all() -> object:
    return OF_ALL[0]


# how many outputs its networks have, and the layer of two of them
MADE: dict[str, tuple[int, Callable[..., InvertibleModule]]] = {
    "two-sided": (2, ReversibleBlock),
    "additive": (2, lambda network, _: AdditiveCoupling(network)),
    "affine": (4, lambda network, _: AffineCoupling(network)),
    "orthogonal": (2, lambda network, _: OrthogonalCoupling(network, channels=4)),
    "spline": (22, lambda network, _: splines(lambda _: network)),
    "gradient": (2, lambda network, _: GradientUpdate(network, 2)),
    "own": (2, lambda network, _: Own(network)),
}
OWN = sorted(name for name in KINDS if name.startswith("an own"))


@given(
    st.sampled_from([*OWN, "PyTorch", "Python", "NumPy"]),
    st.sampled_from([*sorted(PLACES), "context", "global"]),
    st.sampled_from(sorted(PLACES)),
    st.sampled_from(sorted(MADE)),
    memories,
    st.integers(0, 2),
    st.lists(st.integers(0, 5), min_size=6, max_size=6),
    network_seeds,
)
def test_generators_are_found_where_they_are_held(
    name, place, inner, layer, memory, anchors, order, seed
) -> None:
    """The masks are those of the forward pass, whose values cannot show them.

    A network may be that of several layers, and be both networks of one.
    """
    kind = KINDS[name]
    hold, find = PLACES[inner if place in ("context", "global") else place]

    def run(memory: str) -> tuple:
        torch.manual_seed(seed)
        OF_ALL[0] = generator = kind.make()
        seed_one(generator, seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        held = hold(generator)
        cls = NoisyByGlobal if place == "global" else Noisy
        outputs, make = MADE[layer]
        noisy = [cls(outputs, kind.draw, find, held) for _ in range(6)]
        noisy = [noisy[i] for i in order]
        layers = [make(*noisy[2 * i : 2 * i + 2]) for i in range(3)]
        net = InvertibleSequential(*layers, memory=memory, anchors=anchors).double()
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        found = []
        for _ in range(2):
            y = net(x, held) if place == "context" else net(x)
            found += torch.autograd.grad(weighed(y), [x, *parameters(net)])
        return found, kind.draw(generator)

    expected, after = run("store")
    found, after_replay = run(memory)
    assert_all_equal(found, expected)
    assert after == after_replay


@pytest.mark.parametrize("name", [*OWN, "PyTorch", "Python", "NumPy"])
@pytest.mark.parametrize("place", [*sorted(PLACES), "context", "global"])
def test_measuring_for_a_plan_moves_no_generator(name, place) -> None:
    """The first call measures the layers, and draws what it draws without a plan."""
    kind, (hold, find) = KINDS[name], PLACES.get(place, PLACES["deep"])

    def drawn_after(memory: str) -> float:
        seed_all(0, nn.Module())
        OF_ALL[0] = generator = kind.make()
        held = hold(generator)
        cls = NoisyByGlobal if place == "global" else Noisy
        layer = AdditiveCoupling(cls(2, kind.draw, find, held))
        net = InvertibleSequential(layer, memory=memory).double()
        x = torch.randn(3, 4, dtype=torch.float64)
        net(x, held) if place == "context" else net(x)
        return kind.draw(generator)

    assert drawn_after("auto") == drawn_after("store")


@given(st.data(), names, network_seeds, *[st.booleans()] * 3)
def test_a_layer_that_begins_to_draw(data, names, seed, train, same, threads) -> None:
    """Gradients are right or an error is raised, and the next step is right again.

    It begins in another mode, or in the same one: dropout may increase slowly from 0.
    Draws from Python and NumPy are refused then, one layer in each step.
    """
    kinds = sorted({*KINDS} - {*UNREAD} if same else KINDS)
    drawn = [data.draw(st.sampled_from(kinds)) for _ in names]
    net = network(names, [KINDS[k] for k in drawn], 0.0, anchors=0).train(train == same)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        step(net, x, seed, 1)
    net.train(train)
    begin(net, 0.5)
    may_raise = bool({*drawn} & {*UNREAD})
    for i in range(3):
        net.memory = "store"
        expected, _ = step(net, x, seed, 1)
        net.memory = "invert"
        allowed = suppress(RuntimeError) if may_raise and not i else nullcontext()
        with allowed, another_thread(threads):
            found, _ = step(net, x, seed, 1)
            assert_all_equal(present(found), present(expected))
            assert [g is None for g in found] == [g is None for g in expected]


def begin(net: nn.Module, share: float) -> None:
    for module in net.modules():
        if hasattr(module, "share"):
            module.share = share


@pytest.mark.parametrize("name", sorted({*LAYERS} - {"scaled"}))
def test_another_branch_is_refused_whatever_it_depends_on(name) -> None:
    net = network([name] * 2, [KINDS["PyTorch"]] * 2, 0.0, anchors=0)
    for module in net.modules():
        if isinstance(module, Branches):
            once = itertools.chain([True], itertools.repeat(False))
            module.forward = functools.partial(changing, module, once)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"layer 1 .*other operations in its replay"):
        net(x).sum().backward()


def changing(conditioner: Branches, deep: Iterator[bool], x: Tensor) -> Tensor:
    h = conditioner.first(x)
    return conditioner.last[0](conditioner.deeper(h).sin() if next(deep) else h)
