"""Memory-saving gradients are those of plain autograd, whatever the stack."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck, gradgradcheck

from invtorch import InvertibleSequential
from tests.registry import MAKERS, fitted
from tests.stacks import alternating
from tests.strategies import (
    Example,
    anchors,
    assert_as_plain,
    costly,
    directions,
    memories,
    stacks,
    weighed,
)


@given(stacks(), memories, directions)
def test_gradients_equal_plain_autograd(example: Example, memory, direction) -> None:
    def gradients(example, strategy):
        return example.gradients(strategy, direction)

    assert_as_plain(example, memory, gradients)


@pytest.mark.parametrize("name", sorted(MAKERS))
@costly(6)
@given(anchors, directions, memories, st.integers(0, 2**31))
def test_deep_stacks_of_one_kind(name, anchors, direction, memory, seed) -> None:
    torch.manual_seed(seed)
    net = alternating([MAKERS[name](3, 1) for _ in range(10)], anchors=anchors)
    (size,) = fitted(name, 5)
    x = torch.randn(2, 3, size, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 1, size, dtype=torch.float64, requires_grad=True)
    example = Example(net.double(), x, (context,))

    def gradients(example, strategy):
        return example.gradients(strategy, direction)

    assert_as_plain(example, memory, gradients)


@given(stacks(max_layers=3), memories)
def test_backward_fills_grad_as_plain_autograd_does(example: Example, memory) -> None:
    def gradients(example, strategy):
        if strategy == "store":
            return example.gradients(strategy)
        example.module.memory = strategy
        weighed(example.module(example.x, *example.context)).backward()
        return [t.grad for t in example.inputs]

    assert_as_plain(example, memory, gradients)


@given(stacks(max_layers=3), memories, directions)
def test_log_det_gradients_equal_plain_autograd(example, memory, direction) -> None:
    def gradients(example, strategy):
        example.module.memory = strategy
        call = getattr(example.module, f"{direction}_and_log_det")
        y, log_det = call(example.x, *example.context)
        loss = weighed(y) + (log_det * log_det).sum()
        return torch.autograd.grad(loss, example.inputs, allow_unused=True)

    assert_as_plain(example, memory, gradients)


@given(stacks(max_layers=3), memories, directions)
def test_gradients_that_vanish_are_rounding_errors(example, memory, direction) -> None:
    """Those of a network and its own inverse, one after the other."""
    both = InvertibleSequential(example.module, example.module.inv, anchors=0)
    several = isinstance(example.x, tuple)
    state = tuple(t.detach() for t in example.x) if several else example.x.detach()
    example = replace(example, module=both, x=state)
    assume(any(p.requires_grad for p in both.parameters()))

    def gradients(example, strategy):
        return example.gradients(strategy, direction)

    assert_as_plain(example, memory, gradients)


@given(stacks(max_layers=3), memories)
def test_second_order_gradients_equal_plain_autograd(example, memory) -> None:
    def second_order(example, strategy):
        inputs = example.inputs
        example.module.memory = strategy
        y = example.module(example.x, *example.context)
        first = grad(weighed(y), inputs, create_graph=True, materialize_grads=True)
        penalty = sum((g * g).sum() for g in first) + 0 * weighed(y)
        return grad(penalty, inputs, materialize_grads=True)

    assert_as_plain(example, memory, second_order)


@pytest.mark.parametrize("name", sorted(MAKERS))
@settings(max_examples=1)
@given(st.integers(0, 2**31))
def test_gradcheck_and_gradgradcheck(name, seed) -> None:
    """With states that are rebuilt, and states that are kept."""
    torch.manual_seed(seed)
    net = alternating([MAKERS[name](3, 1) for _ in range(5)], anchors=3).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    context = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(net, (x, context), fast_mode=True, nondet_tol=1e-12)
    assert gradgradcheck(net, (x, context), fast_mode=True, nondet_tol=1e-12)
