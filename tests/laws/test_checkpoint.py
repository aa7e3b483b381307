"""Memory-saving gradients are those of PyTorch's own checkpoint around every layer."""

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

from invtorch import InvertibleSequential, ResidualFlow, ReversibleBlock
from tests.devices import DEVICE
from tests.strategies import Example, directions, memories, stacks, weighed
from tests.tolerances import assert_equal, assert_same_gradients, relative_error

seeds = st.integers(0, 2**31)
probabilities = st.sampled_from([0.0, 0.3])
# the tuple layer of the tests draws in another order backward, and knows no autocast
networks = stacks(tuples=False)


def checkpointed(example: Example, direction: str) -> Tensor | tuple[Tensor, ...]:
    """Run the members one by one, each in a checkpoint and without an engine."""
    for module in example.module.modules():
        if isinstance(module, InvertibleSequential):
            module.memory = "store"
    forward = direction == "forward"
    state = example.x
    for member in example.module if forward else reversed(example.module):
        call = member if forward else member.inverse
        state = checkpoint(call, state, *example.context, use_reentrant=False)
    return state


def set_dropout(example: Example, probability: float) -> None:
    """Set a probability, but where two networks would draw in another order."""
    modules = [*example.module.modules()]
    blocks = [m for m in modules if isinstance(m, ReversibleBlock)]
    inside = {id(part) for block in blocks for part in block.modules()}
    for module in modules:
        if isinstance(module, nn.Dropout) and id(module) not in inside:
            module.p = probability


def both(example, memory, direction, seed, autocast=nullcontext):
    """Return output and gradients of the container, and those of the checkpoints."""
    oracle = copy.deepcopy(example)
    example.module.memory = memory
    results = []
    for run in (
        lambda: getattr(example.module, direction)(example.x, *example.context),
        lambda: checkpointed(oracle, direction),
    ):
        torch.manual_seed(seed)
        with autocast():
            y = run()
        inputs = (oracle if results else example).inputs
        loss = weighed(y)
        results.append([loss, *grad(loss, inputs, allow_unused=True)])
    return results


@given(networks, memories, directions, probabilities, seeds)
def test_in_double_precision(example, memory, direction, probability, seed) -> None:
    set_dropout(example, probability)

    def in_single():
        return both(example.in_single(), memory, direction, seed)

    assert_same_gradients(*both(example, memory, direction, seed), in_single)


@pytest.mark.filterwarnings("ignore:the state grows")
@given(networks, memories, directions, probabilities, seeds)
def test_under_autocast(example, memory, direction, probability, seed) -> None:
    """Of a state in float64, bfloat16 sees a difference only where it ties."""

    def autocast():
        return torch.autocast(DEVICE, dtype=torch.bfloat16)

    # its bounded weights are in float64, which autocast does not convert
    assume(not any(isinstance(m, ResidualFlow) for m in example.module.modules()))
    set_dropout(example, probability)
    example.module.float()
    example.context = tuple(
        c.detach().float().requires_grad_(c.requires_grad) for c in example.context
    )
    found, expected = both(example, memory, direction, seed, autocast)
    assert_equal(found[0], expected[0])
    pairs = [p for p in zip(found, expected, strict=True) if p[1] is not None]
    flat = (
        torch.cat([t.double().flatten() for t in ts]) for ts in zip(*pairs, strict=True)
    )
    assert relative_error(*flat, least=1e-2) < torch.finfo(torch.bfloat16).eps
