"""The laws of `invtorch.testing` hold for every shipped layer, on states of its own."""

import pytest
import torch

from invtorch.testing import (
    assert_gradients_match,
    assert_invertible,
    assert_log_det,
    assert_memory_flat,
    assert_right_or_raises,
)
from tests.registry import FIXED, MAKERS, PAIR_MAKERS, fitted

NAMES = [*sorted(MAKERS), *sorted(PAIR_MAKERS), *sorted(FIXED)]


def example(name: str):
    """Return a layer, a state and a context, in double precision."""
    torch.manual_seed(0)
    if name in FIXED:
        make, shape = FIXED[name]
        return make().double(), torch.rand(shape, dtype=torch.float64), ()
    space = fitted(name, 3)
    x = torch.randn(2, 3, *space, dtype=torch.float64)
    context = torch.randn(2, 1, *space, dtype=torch.float64, requires_grad=True)
    if name in PAIR_MAKERS:
        return PAIR_MAKERS[name](3, 1).double(), (x, torch.randn_like(x)), (context,)
    return MAKERS[name](3, 1).double(), x, (context,)


@pytest.mark.parametrize("name", NAMES)
def test_inverse_log_det_and_gradients(name) -> None:
    module, x, context = example(name)
    assert_invertible(module, x, *context)
    assert_log_det(module, x, *context)
    assert_gradients_match(module, x, *context)


@pytest.mark.parametrize("name", NAMES)
def test_every_situation_is_right_or_raises(name) -> None:
    module, x, context = example(name)
    assert_right_or_raises(module, x, *context)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", [*sorted(PAIR_MAKERS), *sorted(FIXED)])
def test_memory_is_flat(name) -> None:
    module, x, context = example(name)
    assert_memory_flat(module, x, *(c.detach() for c in context))
