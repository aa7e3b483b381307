"""Every invertible module inverts, in both directions, and knows its volume."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import invtorch
import invtorch.nets
from invtorch import Composite, InvertibleModule, VolumePreserving
from tests.registry import FIXED, MAKERS, PAIR_MAKERS, SHIPPED
from tests.strategies import Example, directions, modules
from tests.tolerances import assert_equal

OPPOSITE = {"forward": "inverse", "inverse": "forward"}


@given(modules(), directions)
def test_the_inverse_undoes_the_module(example: Example, direction: str) -> None:
    there = getattr(example.module, direction)
    back = getattr(example.module, OPPOSITE[direction])
    assert_equal(back(there(example.x, *example.context), *example.context), example.x)


@given(modules())
def test_inv_swaps_the_directions(example: Example) -> None:
    module, x, context = example.module, example.x, example.context
    assert_equal(module.inv(x, *context), module.inverse(x, *context))
    assert_equal(module.inv.inverse(x, *context), module(x, *context))
    assert {p.data_ptr() for p in module.inv.parameters()} == {
        p.data_ptr() for p in module.parameters()
    }


@given(modules(), directions)
def test_log_det_is_that_of_the_jacobian(example: Example, direction: str) -> None:
    assume(example.x[0].numel() <= 128)
    x, context = example.x[:1], [c[:1] for c in example.context]
    y, log_det = getattr(example.module, f"{direction}_and_log_det")(x, *context)
    plain = getattr(example.module, direction)
    jacobian = torch.autograd.functional.jacobian(lambda x: plain(x, *context), x)
    expected = torch.linalg.slogdet(jacobian.view(x.numel(), x.numel())).logabsdet
    assert_equal(y, plain(x, *context))
    assert log_det.shape == (1,)
    assert abs(log_det.item() - expected.item()) < 1e-8 * max(1, abs(expected.item()))


@given(modules(), st.data())
def test_samples_of_a_batch_are_independent(example, data) -> None:
    x, context = example.x, example.context
    i = data.draw(st.integers(0, len(x) - 1))
    alone = example.module(x[i : i + 1], *(c[i : i + 1] for c in context))
    assert_equal(alone[0], example.module(x, *context)[i])


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
