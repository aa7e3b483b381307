"""`memory="auto"` measures copies of the layers: nothing of the user's feels it."""

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from invtorch import AdditiveCoupling, InvertibleModule, InvertibleSequential
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner, Scale
from tests.stacks import parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = ON_THE_CPU

ROOMY = 10**12


def couplings(make, depth: int = 2, **options) -> InvertibleSequential:
    layers = [AdditiveCoupling(make()) for _ in range(depth)]
    return InvertibleSequential(*layers, **{"budget": ROOMY} | options).double()


def plain() -> Conditioner:
    return Conditioner(2, 2)


class Reading(nn.Module):
    """A conditioner whose context is a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x, context):
        c, (d, _) = context["c"], context["others"]
        return self.inner(x, c, d)


@pytest.mark.parametrize("leaf", [True, False])
def test_no_gradient_reaches_a_context(leaf) -> None:
    net, x = couplings(Reading), sample()
    roots = [sample(1, requires_grad=True), sample(1, requires_grad=True)]

    def gradients(memory):
        net.memory = memory
        c, d = roots if leaf else [root.exp() for root in roots]
        y = net(x, {"c": c, "others": [d, "a word"]})
        assert all(root.grad is None for root in roots)
        return torch.autograd.grad(weighed(y), [*roots, *parameters(net)])

    assert_all_equal(gradients("auto"), gradients("store"))


class Borrowing(InvertibleModule):
    """A layer that reads a parameter which is not its own."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read = read

    def forward(self, x):
        return x + self.read()

    def inverse(self, y):
        return y - self.read()


def test_no_gradient_reaches_what_a_layer_borrows() -> None:
    borrowed = nn.Parameter(torch.ones(()))
    net = InvertibleSequential(Borrowing(lambda: borrowed), memory="auto")
    with pytest.raises(RuntimeError, match="neither a parameter nor context"):
        net(sample())
    assert borrowed.grad is None


class Noisy(nn.Module):
    """A conditioner that draws from everything there is."""

    def forward(self, x, generator):
        own = torch.randn((), generator=generator)
        noise = random.random() + float(np.random.rand()) + torch.rand(()) + own
        return x * noise


def test_no_random_number_is_used_up() -> None:
    outputs, x = [], sample()
    for memory in ("store", "auto"):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(1)
        net = couplings(Noisy, memory=memory)
        outputs.append(net(x.requires_grad_(), generator))
    assert torch.equal(*outputs)


def test_layers_are_what_they_were() -> None:
    inner = couplings(lambda: nn.Sequential(plain(), nn.BatchNorm2d(2)), memory="auto")
    frozen = couplings(plain, depth=1).requires_grad_(False).eval()
    net = InvertibleSequential(inner, frozen, inner[0], inner[1].inv, memory="auto")
    x = sample(requires_grad=True)

    def facts():
        parts = [part.training for part in net.modules()]
        return parts, [(p.requires_grad, p.grad) for p in net.parameters()]

    before = facts()
    buffers = {}
    for memory in ("store", "auto"):
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
        net.memory = inner.memory = memory
        values = [p.clone() for p in net.parameters()]
        net(x)
        buffers[memory] = [b.clone() for b in net.buffers()]
        assert all(map(torch.equal, values, net.parameters()))
        assert facts() == before
    assert all(map(torch.equal, buffers["store"], buffers["auto"]))
    assert x.grad is None


class Writing(InvertibleModule):
    """A layer that writes into its context."""

    def forward(self, x, count):
        count.add_(1)
        return x + 1

    def inverse(self, y, *_):
        return y - 1


def test_what_a_layer_writes_reaches_no_context() -> None:
    net = InvertibleSequential(Writing(), memory="auto")
    count = torch.zeros(())
    with pytest.raises(RuntimeError, match=r"the context of .* was modified in place"):
        net(sample(requires_grad=True), count)
    assert count == 0


def test_what_cannot_be_copied_is_refused() -> None:
    net = couplings(plain, memory="auto")
    net[1].lock = threading.Lock()
    with pytest.raises(TypeError, match="could not copy AdditiveCoupling or"):
        net(sample())


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.11
def test_a_running_profile_is_not_ended() -> None:
    net, x = couplings(plain, memory="auto"), sample(requires_grad=True)

    def step() -> None:
        weighed(net(x)).backward()

    with pytest.raises(RuntimeError, match="call it before on an input"):
        measure_memory(step)
    with profile() as record, pytest.raises(RuntimeError, match="does not nest"):
        step()
    assert any(event.name == "aten::clone" for event in record.events())
    step()
    assert measure_memory(step).peak > x.nbytes


class Lookup(InvertibleModule):
    """A layer whose state begins with what has no gradient: indices, or a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, 3))

    def forward(self, state):
        ids, x = state
        return ids, x + self.table[ids.long()]

    def inverse(self, state):
        ids, y = state
        return ids, y - self.table[ids.long()]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_states_with_a_part_that_has_no_gradient(dtype) -> None:
    net = InvertibleSequential(Lookup(), Lookup(), budget=ROOMY).double()
    ids, x = (torch.arange(4) % 2).to(dtype), torch.randn(4, dtype=torch.float64)
    x.requires_grad_()

    def gradients(memory):
        net.memory = memory
        _, y = net((ids, x))
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(gradients("auto"), gradients("store"))
    assert max(cost.round_trip for cost in net.plan.costs) < 1e-12


def test_a_state_in_half_precision() -> None:
    net = couplings(plain, memory="auto").bfloat16()
    x = sample().bfloat16()
    net(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    net.guard = None
    with pytest.raises(RuntimeError, match="cannot be rebuilt by inversion without"):
        net(x)


def test_inside_of_a_checkpoint() -> None:
    net, x = couplings(plain), sample(requires_grad=True)

    def gradients(memory):
        net.memory = memory
        y = checkpoint(net, x, use_reentrant=False)
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(gradients("auto"), gradients("store"))
    assert net.plan.costs[0].stored > 0


def test_what_is_frozen_is_measured_anew() -> None:
    """Autograd keeps the input of a scaling only for the gradient of the scale."""
    net, held = InvertibleSequential(Scale(4), Scale(4), memory="auto").double(), []
    for trained in (True, False):
        net[1].requires_grad_(trained)
        net(sample())
        held.append([cost.holds_input for cost in net.plan.costs])
    assert held == [[True, True], [True, False]]


def test_a_context_of_another_shape_is_measured() -> None:
    net, x = couplings(plain, memory="auto"), sample()
    stored = []
    for context in (sample(1)[..., :1, :1], sample(1)):
        net(x, context.requires_grad_())
        stored.append(net.plan.costs[0].stored)
    assert stored[0] < stored[1]


class Off(AdditiveCoupling):
    """A coupling whose inverse is off by a part of what it adds."""

    def __init__(self, off: float):
        super().__init__(Conditioner(2, 2))
        self.off = off

    def inverse(self, y):
        x = super().inverse(y)
        return x + self.off * (y - x)


def test_round_trips_are_those_of_each_layer() -> None:
    net = InvertibleSequential(*[Off(off) for off in (0.0, 0.1, 0.0)], memory="auto")
    net(sample(requires_grad=True).float()).sum().backward()
    good, bad, again = (cost.round_trip for cost in net.plan.costs)
    assert max(good, again) < 1e-6
    assert bad > 1e-3
    assert net.plan.strategies[1] != "invert"
