"""The forward model has an adjoint, and its gradient is that of the likelihood."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from mri_example.masks import undersample
from mri_example.physics import LikelihoodGradient, Measurement
from mri_example.transforms import channels_to_complex, complex_to_channels
from tests.tolerances import assert_equal

sizes = st.integers(2, 9)
bools = st.booleans()


def draw(rows: int, cols: int, copies: int = 1):
    image = torch.randn(2, copies, rows, cols, dtype=torch.complex128)
    mask = (torch.rand(2, 1, 1, cols) < 0.5).float()
    return image, mask


@given(sizes, sizes)
def test_the_adjoint_is_the_adjoint(rows, cols) -> None:
    x, mask = draw(rows, cols)
    k, _ = draw(rows, cols)
    model = Measurement(mask)
    left = torch.vdot(k.flatten(), model.forward(x).flatten())
    right = torch.vdot(model.adjoint(k).flatten(), x.flatten())
    assert abs(left - right) < 1e-10


@given(sizes, sizes)
def test_measuring_what_is_measured_changes_nothing(rows, cols) -> None:
    x, mask = draw(rows, cols)
    model = Measurement(mask)
    d = model.forward(x)
    assert_equal(model.forward(model.adjoint(d)), d)


@given(sizes, sizes, st.integers(1, 3))
def test_the_gradient_is_that_of_the_squared_residual(rows, cols, copies) -> None:
    x, mask = draw(rows, cols, copies)
    truth, _ = draw(rows, cols)
    model = Measurement(mask)
    d = model.forward(truth)
    estimate = complex_to_channels(x).requires_grad_()
    residual = model.forward(channels_to_complex(estimate)) - d
    likelihood = residual.abs().square().sum() / 2
    (expected,) = torch.autograd.grad(likelihood, estimate)
    found = LikelihoodGradient()(estimate, model.adjoint(d), mask)
    assert_equal(found, expected)


def test_the_gradient_is_differentiable_twice() -> None:
    x, mask = draw(3, 4)
    zero_filled, _ = draw(3, 4)
    estimate = complex_to_channels(x).requires_grad_()
    arguments = (estimate, zero_filled.requires_grad_(), mask)
    assert gradcheck(LikelihoodGradient(), arguments)
    assert gradgradcheck(LikelihoodGradient(), arguments)


def test_data_of_another_size_do_not_widen_the_gradient() -> None:
    image, mask = draw(3, 4)
    estimate = complex_to_channels(image)
    with pytest.raises(RuntimeError, match="expanded size"):
        LikelihoodGradient()(estimate, torch.zeros(2, 5, 3, 4) * 1j, mask)


@given(size=st.integers(2, 5), lost=st.integers(1, 2), data=bools)
def test_data_that_lack_an_axis_are_refused(size, lost, data) -> None:
    """As many images in a batch as copies: they would meet each other's data."""
    estimate = torch.randn(size, 2 * size, 3, 4)
    mask, zero_filled = torch.ones(size, 1, 1, 4), torch.zeros(size, 1, 3, 4) + 0j
    if data:
        zero_filled = zero_filled[(slice(None), *[0] * lost)]
    else:
        mask = mask[(slice(None), *[0] * lost)]
    name = "zero_filled" if data else "mask"
    with pytest.raises(ValueError, match=rf"{name} has shape .*, but needs 4 axes"):
        LikelihoodGradient()(estimate, zero_filled, mask)


def test_what_is_not_measured_is_positive_zero() -> None:
    kspace = torch.full((2, 4), -1 - 1j)
    masked = torch.view_as_real(undersample(kspace, torch.zeros(4)))
    assert not masked.signbit().any()
