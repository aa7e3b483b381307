"""The Fourier transform is unitary, crops are centered, channels are a bijection."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mri_example.transforms import (
    center_crop,
    channels_to_complex,
    complex_to_channels,
    fftc,
    ifftc,
    root_sum_of_squares,
)
from tests.tolerances import assert_equal

sizes = st.integers(1, 9)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128)


@given(sizes, sizes)
def test_the_transform_is_unitary_with_the_given_inverse(rows, cols) -> None:
    x, k = images(2, rows, cols), images(2, rows, cols)
    assert_equal(ifftc(fftc(x)), x)
    assert_equal(fftc(ifftc(k)), k)
    assert_equal(
        torch.vdot(k.flatten(), fftc(x).flatten()),
        torch.vdot(ifftc(k).flatten(), x.flatten()),
    )
    assert_equal(fftc(x).norm(), x.norm())


@given(sizes, sizes)
def test_the_origin_is_in_the_middle(rows, cols) -> None:
    flat = torch.ones(rows, cols, dtype=torch.complex128)
    impulse = torch.zeros(rows, cols, dtype=torch.complex128)
    impulse[rows // 2, cols // 2] = (rows * cols) ** 0.5
    assert_equal(fftc(flat), impulse)


@given(sizes, sizes, st.data())
def test_crops_are_centered(rows, cols, data) -> None:
    shape = data.draw(st.tuples(st.integers(1, rows), st.integers(1, cols)))
    x = images(2, rows, cols)
    top, left = (rows - shape[0]) // 2, (cols - shape[1]) // 2
    expected = x[:, top : top + shape[0], left : left + shape[1]]
    assert torch.equal(center_crop(x, shape), expected)


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (0, 1)])
def test_crops_lie_within_the_image(shape) -> None:
    with pytest.raises(ValueError, match="must lie within the image of"):
        center_crop(torch.zeros(4, 4), shape)


@given(sizes, sizes)
def test_channels_hold_real_parts_first(copies, cols) -> None:
    x = images(2, copies, 3, cols)
    channels = complex_to_channels(x)
    assert torch.equal(channels[:, :copies], x.real)
    assert torch.equal(channels[:, copies:], x.imag)
    assert torch.equal(channels_to_complex(channels), x)


@given(sizes, sizes)
def test_the_root_sum_of_squares_is_the_norm_over_coils(coils, cols) -> None:
    x = images(coils, 2, cols)
    assert_equal(root_sum_of_squares(x, dim=0), x.abs().square().sum(0).sqrt())
