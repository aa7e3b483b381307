"""Whatever a module holds, its container is compiled rightly, or refused by name.

The alterations are those of `test_altered_modules.py`. A container of one layer is
altered before it is compiled, or after its first step.
"""

import copy
import re

import pytest
import torch
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.exc import Unsupported

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.compilation import COMPILING, compiled
from tests.laws.test_altered_modules import (
    ALTERATIONS,
    REFUSED_BY_PYTORCH,
    held,
    hooked,
    opaque,
    shadowed_weight,
)
from tests.stacks import sample
from tests.strategies import costly, weighed
from tests.tolerances import assert_all_equal

pytestmark = [
    *COMPILING,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
]
# PyTorch sees neither of them if they come after it compiled a module, plain or not.
UNSEEN = (hooked, shadowed_weight)
REFUSALS = "reads a tensor that needs a gradient|has hooks"


def gradients(net, function, x):
    """Return output and gradients; a graph gives zeros in place of `None`."""
    y, tensors = function(x), [x, *held(net)]
    grads = torch.autograd.grad(
        weighed(y), tensors, allow_unused=True, materialize_grads=True
    )
    return [y, *grads]


def altered(net, seed, kind, name) -> None:
    """Alter the convolution of a network."""
    torch.manual_seed(seed)
    kind(next(m for m in net.modules() if isinstance(m, nn.Conv2d)), name)


def expected_of(net, seed, kind, name, x):
    """Return the results of plain autograd."""
    plain = copy.deepcopy(net)
    plain.memory = "store"
    altered(plain, seed, kind, name)
    try:
        return gradients(plain, plain, x)
    except REFUSED_BY_PYTORCH:
        reject()


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(ALTERATIONS),
    name=st.sampled_from(["weight", "bias"]),
    later=st.booleans(),
)
@costly(8)
def test_equal_or_refused(seed, kind, name, later) -> None:
    assume(not (later and kind in UNSEEN))
    torch._dynamo.reset()
    torch.manual_seed(seed)
    net = InvertibleSequential(AdditiveCoupling(opaque(2)), anchors=0).double()
    x = sample(requires_grad=True)
    expected, function = expected_of(net, seed, kind, name, x), compiled(net, "eager")
    if later:
        function(x)
    altered(net, seed, kind, name)
    try:
        found = gradients(net, function, x)
    except Unsupported as error:
        if not re.search(REFUSALS, str(error)):
            raise
    else:
        assert_all_equal(found, expected)
