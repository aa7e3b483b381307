"""The registry answers for what it knows, and can be switched off."""

import torch
from torch import nn

from invtorch import AdditiveCoupling, OrthogonalCoupling
from invtorch.closed_form import closed_form, without_closed_forms
from tests.stacks import closed_form_network, gradients_of, sample
from tests.tolerances import assert_all_equal


def test_it_is_on_again_after_an_error() -> None:
    layer, x = AdditiveCoupling(nn.Linear(2, 2)), torch.randn(1, 4)
    try:
        with without_closed_forms():
            assert closed_form(layer, x) is None
            raise KeyError
    except KeyError:
        assert closed_form(layer, x) is not None


def test_some_classes_can_be_left_to_autograd() -> None:
    layer, x = AdditiveCoupling(nn.Linear(2, 2)), torch.randn(1, 4)
    with without_closed_forms(OrthogonalCoupling):
        assert closed_form(layer, x) is not None
    with without_closed_forms(nn.Linear):
        assert closed_form(layer, x) is None


def test_autograd_and_closed_forms_give_the_same_gradients(recorded_calls) -> None:
    net, x = closed_form_network(0), sample(requires_grad=True)
    found = gradients_of(net, x)()
    assert all(recorded_calls)
    with without_closed_forms():
        recorded_calls.clear()
        assert_all_equal(found, gradients_of(net, x)())
    assert not any(recorded_calls)
