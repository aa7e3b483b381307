"""States of integers, and real states with complex parameters: right, or refused.

Parameters are given the dtype of the state in many layers. A state that cannot hold
them would make other numbers of them: 0 of 0.5, the real part of a complex number.
"""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.registry import FIXED, MAKERS
from tests.strategies import Example, modules
from tests.tolerances import assert_equal

pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
REFUSALS = TypeError, ValueError, RuntimeError, NotImplementedError
INTEGERS = torch.int64, torch.int32, torch.uint8, torch.bool
DIRECTIONS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")


def each(function: Any, state: Any) -> Any:
    """Apply a function to each tensor of a state."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def flat(result: Any) -> list[Tensor]:
    """Return all tensors of a state, or of one with a log-determinant."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def assert_right_or_refused(call: Any, state: Any, reference: Any) -> None:
    """Assert that a call returns the values of that with a reference, or raises."""
    try:
        found = call(state)
    except REFUSALS:
        return
    for a, b in zip(flat(found), flat(call(reference)), strict=True):
        assert_equal(a.to(b.dtype), b)


@given(modules(), st.sampled_from(INTEGERS), st.sampled_from(DIRECTIONS))
def test_integers(example: Example, dtype: torch.dtype, direction: str) -> None:
    integers = each(lambda t: (3 * t).abs().round().to(dtype), example.x)
    assert_right_or_refused(
        lambda state: getattr(example.module, direction)(state, *example.context),
        integers,
        each(Tensor.double, integers),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", FIXED)
def test_integers_of_one_shape(name, dtype, direction) -> None:
    make, shape = FIXED[name]
    module, x = make().double(), torch.rand(shape, dtype=torch.float64)
    start = x if direction.startswith("forward") else module(x)
    integers = each(lambda t: (3 * t).abs().round().to(dtype), start)
    assert_right_or_refused(
        getattr(module, direction), integers, each(Tensor.double, integers)
    )


@given(modules(), st.sampled_from(DIRECTIONS))
def test_real_states_and_complex_parameters(example: Example, direction: str) -> None:
    module = example.module.to(torch.complex128)
    assume(any(p.is_complex() for p in module.parameters()))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1j * torch.randn_like(p) if p.is_complex() else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that a part is discarded
        assert_right_or_refused(
            lambda state: getattr(module, direction)(state, *example.context),
            example.x,
            each(lambda t: t.to(torch.complex128), example.x),
        )


@pytest.mark.parametrize("name", ["ElementwiseAffine", "ActNorm", "ConditionalAffine"])
def test_the_sentence_names_the_dtype_and_the_way_out(name) -> None:
    layer, x = MAKERS[name](2, 1).double(), torch.ones(2, 2, 3)
    for state in (x.long(), x):
        with pytest.raises(TypeError, match=rf"{state.dtype}.* cannot hold.*complex"):
            layer(state)
        layer = layer.to(torch.complex64)
    assert layer(x.to(torch.complex64)).is_complex()
