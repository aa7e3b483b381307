"""Layers are measured without their hooks, and with weights that hooks compute."""

import threading
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from invtorch import AdditiveCoupling
from tests.devices import ON_THE_CPU
from tests.stacks import parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal
from tests.unit.memory.test_costs import couplings, plain

pytestmark = ON_THE_CPU


def hooked(part: nn.Module, calls: Counter) -> None:
    """Count the calls of every kind of hook that a module and its parameters have."""

    def counting(kind):
        return lambda *_: calls.update([kind])

    part.register_forward_hook(counting("forward"))
    part.register_forward_pre_hook(counting("forward_pre"))
    part.register_full_backward_hook(counting("backward"))
    part.register_full_backward_pre_hook(counting("backward_pre"))
    for p in part.parameters(recurse=False):
        p.register_hook(counting("gradient"))
        p.register_post_accumulate_grad_hook(counting("accumulated"))


def test_no_hook_is_called_more_often() -> None:
    counts = []
    for memory in ("store", "auto"):
        inner = couplings(plain, depth=1)
        net = couplings(plain, memory=memory)
        net.extend([inner, net[0]])
        calls: Counter = Counter()
        for part in net.modules():
            hooked(part, calls)
            if isinstance(part, AdditiveCoupling):
                part.memory = "store"  # whatever is faster
        weighed(net(sample(requires_grad=True))).backward()
        counts.append(calls)
    assert counts[0] == counts[1]
    assert len(counts[0]) == 6


class Trainer:
    """An object that cannot be copied, with a method that is a hook."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0

    def hook(self, *_) -> None:
        self.calls += 1


def test_the_owner_of_a_hook_is_not_copied() -> None:
    net, trainer = couplings(plain, memory="auto"), Trainer()
    net[0].register_forward_hook(trainer.hook)
    net(sample())
    assert trainer.calls == 1


WEIGHTS = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "prune": lambda part: prune.l1_unstructured(part, "weight", amount=0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("way", sorted(WEIGHTS))
def test_hooks_that_compute_weights_go_on(way) -> None:
    def gradients(memory):
        torch.manual_seed(0)
        net = couplings(plain, memory=memory)
        for layer in net:
            WEIGHTS[way](layer.conditioner.first)
        for batch in (2, 3, 2):
            x = sample(batch=batch, requires_grad=True)
            found = torch.autograd.grad(weighed(net(x)), [x, *parameters(net)])
        return found

    assert_all_equal(gradients("auto"), gradients("store"))


def test_weights_that_were_computed() -> None:
    net, x = couplings(plain), sample(requires_grad=True)

    def gradients(memory):
        net.memory = memory
        twice = {name: p * 2 for name, p in net.named_parameters()}
        y = torch.func.functional_call(net, twice, (x,))
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    assert_all_equal(gradients("auto"), gradients("store"))
