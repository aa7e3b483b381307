"""The residual block of the paper, in one to three dimensions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from invtorch import GatedResidualBlock
from tests.tolerances import assert_equal


@given(st.data())
def test_it_keeps_the_space_and_sets_the_channels(data) -> None:
    dims = data.draw(st.integers(1, 3))
    stride = data.draw(st.tuples(*[st.integers(1, 4)] * dims) | st.integers(1, 4))
    space = data.draw(st.tuples(*[st.integers(1, 9)] * dims))
    inputs, outputs = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    block = GatedResidualBlock(inputs, outputs, hidden=3, stride=stride, dims=dims)
    assert block(torch.randn(2, inputs, *space)).shape == (2, outputs, *space)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_it_is_the_formula(stride, kernel_size) -> None:
    block = GatedResidualBlock(
        3, 2, hidden=5, stride=stride, kernel_size=kernel_size
    ).double()
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    h = F.relu(F.conv2d(x, block.gather.weight, block.gather.bias, stride))
    h = F.relu(
        F.conv2d(h, block.look.weight, block.look.bias, padding=kernel_size // 2)
    )
    a, b = F.conv_transpose2d(h, block.spread.weight, None, stride).chunk(2, 1)
    assert_equal(block(x), a * torch.sigmoid(b))


def test_weights_are_normalized_per_first_axis() -> None:
    block = GatedResidualBlock(3, 2, hidden=5)
    for layer in (block.gather, block.look, block.spread):
        magnitude = layer.parametrizations.weight.original0
        norms = layer.weight.flatten(1).norm(dim=1)
        assert torch.allclose(norms, magnitude.flatten(), atol=1e-6)
    assert block.spread.bias is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "dims is 4, but must be 1, 2 or 3"),
        ({"kernel_size": 2}, "kernel_size is 2, but must be odd"),
        ({"stride": (1, 2, 3)}, r"stride is \(1, 2, 3\), but needs 2 entries"),
        ({"stride": 0}, "stride is 0, but must be at least 1"),
    ],
)
def test_impossible_arguments(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        GatedResidualBlock(2, 2, hidden=2, **options)
