"""Every invertible module inverts, in both directions, and knows its volume."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import invtorch
import invtorch.nets
from invtorch import Composite, InvertibleModule, VolumePreserving
from invtorch.testing import assert_invertible, assert_log_det
from invtorch.testing.compare import as_tuple
from tests.registry import FIXED, MAKERS, PAIR_MAKERS, SHIPPED
from tests.strategies import Example, modules
from tests.tolerances import assert_equal


@given(modules())
def test_each_direction_undoes_the_other(example: Example) -> None:
    assert_invertible(example.module, example.x, *example.context)


@given(modules())
def test_inv_swaps_the_directions(example: Example) -> None:
    module, x, context = example.module, example.x, example.context
    pairs = (
        (module.inv(x, *context), module.inverse(x, *context)),
        (module.inv.inverse(x, *context), module(x, *context)),
    )
    for found, expected in pairs:
        for a, b in zip(as_tuple(found), as_tuple(expected), strict=True):
            assert_equal(a, b)
    assert {p.data_ptr() for p in module.inv.parameters()} == {
        p.data_ptr() for p in module.parameters()
    }


@given(modules())
def test_log_det_is_that_of_the_jacobian(example: Example) -> None:
    tensors = example.x if isinstance(example.x, tuple) else (example.x,)
    assume(sum(t[0].numel() for t in tensors) <= 128)
    assert_log_det(example.module, example.x, *example.context)


@given(modules(), st.data())
def test_samples_of_a_batch_are_independent(example, data) -> None:
    tensors = example.x if isinstance(example.x, tuple) else (example.x,)
    i = data.draw(st.integers(0, len(tensors[0]) - 1))
    one = tuple(t[i : i + 1] for t in tensors)
    state = one if isinstance(example.x, tuple) else one[0]
    alone = example.module(state, *(c[i : i + 1] for c in example.context))
    whole = example.module(example.x, *example.context)
    for a, b in zip(as_tuple(alone), as_tuple(whole), strict=True):
        assert_equal(a[0], b[i])


def test_every_shipped_module_is_in_the_registry() -> None:
    shipped = {
        value
        for package in (invtorch, invtorch.nets)
        for name in package.__all__
        if isinstance(value := getattr(package, name), type)
        and issubclass(value, InvertibleModule)
        and value not in (InvertibleModule, VolumePreserving, Composite)
    }
    assert shipped == set(SHIPPED)
    for cls, name in SHIPPED.items():
        fixed = name in FIXED
        module = FIXED[name][0]() if fixed else (MAKERS | PAIR_MAKERS)[name](4, 2)
        parts = module.modules()
        assert any(isinstance(part, cls) for part in parts)


def test_a_log_determinant_that_is_not_written_raises() -> None:
    class Shift(InvertibleModule):
        def forward(self, x):
            return x + 1

        def inverse(self, y):
            return y - 1

    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        with pytest.raises(NotImplementedError, match="Shift has no log-determinant"):
            getattr(Shift(), direction)(torch.zeros(1, 2))
