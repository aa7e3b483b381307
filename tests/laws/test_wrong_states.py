"""A state of another form than a module takes is refused in one sentence.

Errors that come from inside, as that a tuple has no attribute `shape`, say neither what
is wrong nor where.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import InvertibleSequential, LU1x1, OnPart
from tests.strategies import Example, modules

DIRECTIONS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")
# PyTorch's own error of a convolution that gets other channels is clear enough
CLEAR = TypeError, ValueError, RuntimeError, NotImplementedError


def wrong(x: Any, how: str) -> Any:
    """Return something else in place of a state."""
    tensors = x if isinstance(x, tuple) else (x,)
    first = tensors[0]
    return {
        "tensor": first,
        "tuple of one": (first,),
        "tuple of two": (first, first),
        "tuple of three": (first,) * 3,
        "empty tuple": (),
        "list": [first, first],
        "nothing": None,
        "number": 1.0,
        "nested tuple": ((first,), first),
        "more channels": tuple(torch.cat([t, t, t[:, :1]], 1) for t in tensors),
        "no channels": tuple(t[:, :0] for t in tensors),
        "batch only": tuple(t.flatten(1)[:, 0] for t in tensors),
        "a number without axes": tuple(t.flatten()[0] for t in tensors),
    }[how]


HOW = (
    *("tensor", "tuple of one", "tuple of two", "tuple of three", "empty tuple"),
    *("list", "nothing", "number", "nested tuple", "more channels"),
    *("no channels", "batch only", "a number without axes"),
)


@given(
    modules(),
    st.sampled_from(HOW),
    st.sampled_from(DIRECTIONS),
    st.booleans(),
    st.booleans(),
)
def test_wrong_states_are_refused(
    example: Example, how: str, direction: str, contained: bool, unpacked: bool
) -> None:
    state = wrong(example.x, how)
    if unpacked and isinstance(state, tuple) and len(state) == 1:
        (state,) = state
    module = example.module
    if contained:
        module = InvertibleSequential(module)
    message = ""
    try:
        getattr(module, direction)(state, *example.context)
    except CLEAR as error:
        message = str(error) or "object has no attribute"  # an error without a message
    assert "object has no attribute" not in message


@pytest.mark.parametrize("contained", [False, True])
def test_the_sentence_names_the_layer(contained: bool) -> None:
    def module(layer):
        return InvertibleSequential(layer) if contained else layer

    x = torch.zeros(1, 2, 3)
    message = "of LU1x1 is one tensor, but got a tuple of 2: select one by `OnPart`"
    with pytest.raises(TypeError, match=message):
        module(LU1x1(2))((x, x))
    with pytest.raises(TypeError, match="of OnPart is a tuple of tensors, but got Ten"):
        module(OnPart(LU1x1(2), 0))(x)
