"""The laws hold without hand-written derivatives: they change nothing but speed."""

import pytest
import torch
from torch import nn

from invtorch import AdditiveCoupling
from invtorch.closed_form import closed_form, without_closed_forms
from tests.laws import test_checkpoint, test_evaluations, test_gradients, test_memory

DRAWN = [
    test_gradients.test_gradients_equal_plain_autograd,
    test_gradients.test_backward_fills_grad_as_plain_autograd_does,
    test_gradients.test_log_det_gradients_equal_plain_autograd,
    test_gradients.test_second_order_gradients_equal_plain_autograd,
    test_checkpoint.test_in_double_precision,
]
CLOSED = [
    "AdditiveCoupling(Sequential)",
    "OrthogonalCoupling(Sequential)",
    "OrthogonalCoupling(GatedResidualBlock)",
    "ReversibleBlock(Sequential)",
]


@pytest.fixture(autouse=True)
def registry_off():
    with without_closed_forms():
        yield


@pytest.mark.parametrize("law", DRAWN, ids=lambda law: law.__name__)
def test_laws_of_gradients(law) -> None:
    law()


@pytest.mark.parametrize("name", CLOSED)
def test_laws_of_layers_with_a_closed_form(name) -> None:
    test_gradients.test_deep_stacks_of_one_kind(name=name)
    test_gradients.test_gradcheck_and_gradgradcheck(name=name)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_paper_s_layer_is_evaluated_once_in_backward(direction) -> None:
    test_evaluations.test_a_step_of_the_paper_s_layer_evaluates_every_block_twice(
        0, direction
    )


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", CLOSED)
def test_memory_is_flat(name) -> None:
    test_memory.test_live_bytes_are_equal_at_every_depth_for_any_module(name, "forward")
    test_memory.test_the_peak_of_a_step_is_flat(name, 0)


def test_some_classes_alone() -> None:
    """Switching off what is off already changes nothing when it ends."""
    layer, x = AdditiveCoupling(nn.Linear(2, 2)), torch.randn(1, 4)
    with without_closed_forms(AdditiveCoupling):
        assert closed_form(layer, x) is None
    assert closed_form(layer, x) is None
    assert closed_form(layer.conditioner, x) is None
