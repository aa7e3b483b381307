"""Reconstruction in tiles of rows and slices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch.planning import measure_memory
from mri_example.errors import InputError
from mri_example.model import IRIM2D, IRIM3D, RIM, UNet
from mri_example.physics import LikelihoodGradient
from mri_example.reconstruction import WHOLE, Tile, tile_axes, zero_filled
from mri_example.reconstruction.tiling import in_tiles
from mri_example.sampling import undersample
from mri_example.signal import complex_to_channels, fft2c, ifft2c
from tests.mri.test_reconstruction import SIZE, data, volume
from tests.tolerances import assert_equal

__all__ = ["data"]  # a fixture

FAN = {"hidden": (4, 4), "strides": (1, 2)}
TILES = [Tile(rows=9), Tile(cols=7), Tile(rows=8, cols=5), Tile(rows=1), Tile(rows=99)]


def problem(rows: int, cols: int, slices: int = 0):
    """Return an estimate, data and a mask; of slices and columns with some slices."""
    space = (slices, rows, cols) if slices else (rows, cols)
    estimate = torch.randn(2, 1, *space, dtype=torch.complex128)
    mask = (torch.rand(2, 1, *((slices, 1) if slices else (1,)), cols) < 0.5).double()
    image = torch.randn(2, 1, *space, dtype=torch.complex128)
    return estimate, ifft2c(undersample(fft2c(image), mask)), mask


def gradient(estimate, data, mask):
    return LikelihoodGradient()(complex_to_channels(estimate), data, mask)


@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([0, 3]), st.data())
def test_some_rows_are_a_smaller_problem_of_the_same_kind(rows, cols, slices, draw):
    estimate, data, mask = problem(rows, cols, slices)
    start = draw.draw(st.integers(0, rows - 1))
    tile = slice(start, draw.draw(st.integers(start + 1, rows)))
    whole = gradient(estimate, data, mask)
    part = gradient(estimate[..., tile, :], data[..., tile, :], mask)
    assert_equal(part, whole[..., tile, :], least=1.0)


def test_some_columns_are_not():
    estimate, data, mask = problem(6, 8)
    whole = gradient(estimate, data, mask)[..., :4]
    part = gradient(estimate[..., :4], data[..., :4], mask[..., :4])
    assert (part - whole).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("slices", [0, 3])
def test_tiles_of_what_looks_at_single_pixels_are_the_whole(tile, slices):
    _, data, mask = problem(11, 13, slices)
    found = in_tiles(zero_filled, tile)(data, mask)
    assert torch.allclose(found.double(), data[:, 0].abs(), rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 5, 12])
def test_descent_along_the_gradient_is_the_same_in_tiles_of_rows(rows):
    def descend(image, mask):
        estimate = torch.zeros_like(image)
        for _ in range(5):
            step = gradient(estimate, image, mask)
            estimate = estimate - 0.5 * torch.complex(*step.chunk(2, dim=1))
        return estimate

    _, data, mask = problem(12, 9)
    found = in_tiles(descend, Tile(rows=rows))(data, mask)
    assert torch.allclose(found.double(), descend(data, mask)[:, 0].abs(), atol=1e-5)


def looking_at_single_pixels(model):
    """Take from convolutions all that looks beyond a pixel."""
    for name, kernel in model.named_parameters():
        if kernel.ndim > 3 and not name.endswith("original0"):
            whole = kernel.data.clone()
            center = tuple(slice(n // 2, n // 2 + 1) for n in kernel.shape[2:])
            kernel.data.zero_()
            kernel.data[(..., *center)] = whole[(..., *center)]
    return model.double()


@pytest.mark.parametrize("rows", [1, 4, 5, 12])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "model",
    [
        IRIM2D(16, 2, (4, 4), (1, 1)),
        IRIM2D(16, 2, (4, 4), (1, 1), multiplicity=2, read_out="parametric"),
        IRIM3D(16, 2, (4, 4), (1, 1), slab=3),
        RIM(4, 3),
    ],
    ids=["irim", "read-out", "irim 3d", "rim"],
)
@torch.no_grad()
def test_a_network_of_single_pixels_is_the_same_in_tiles_of_rows(model, batch, rows):
    """So nothing but what lies beyond its edges is hidden from a tile: no scale is."""
    method = looking_at_single_pixels(model.build())
    _, data, mask = problem(12, 9, slices=model.slab or 0)
    mask = mask if model.slab is None else mask[:, :, :1]
    data = (data * torch.linspace(0.01, 1, 12).view(-1, 1) ** 2)[:batch]
    expected = in_tiles(method, WHOLE)(data, mask[:batch])
    found = in_tiles(method, Tile(rows=rows))(data, mask[:batch])
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "tile"),
    [
        (UNet(2, 2), Tile(rows=8, cols=8)),
        (IRIM2D(8, 1, **FAN), Tile(rows=8)),
        (RIM(4, 2), Tile(rows=8)),
        (IRIM3D(8, 1, **FAN, slab=4), Tile(rows=8, slices=2)),
    ],
    ids=["unet", "irim", "rim", "irim 3d"],
)
def test_models_reconstruct_in_tiles(data, tmp_path, model, tile):
    torch.manual_seed(0)
    method, shapes = model.build(), []
    method.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[2:]))
    tiled = volume(method, data, tmp_path, tile)
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    slices = () if tile.slices is None else (tile.slices,)
    assert largest == (*slices, tile.rows, tile.cols or SIZE)
    larger = Tile(rows=99, slices=tile.slices)
    whole = volume(method, data, tmp_path, larger)
    assert np.array_equal(
        whole, volume(method, data, tmp_path, Tile(slices=tile.slices))
    )
    assert tiled.shape == whole.shape
    assert 0 < np.abs(tiled - whole).max() < 2 * whole.max()


def test_tiles_need_less_memory_and_strategies_do_not_matter():
    model = IRIM2D(16, 4, (16, 16), (1, 2)).build()
    image = torch.randn(1, 1, 128, 64, dtype=torch.complex64)
    mask = torch.ones(1, 1, 1, 64)

    @torch.no_grad()
    def peak(tile: Tile) -> int:
        return measure_memory(lambda: in_tiles(model, tile)(image, mask)).peak

    whole = peak(WHOLE)
    assert peak(Tile(rows=32)) < 0.4 * whole
    model.memory = "store"
    assert peak(WHOLE) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(
    ("method", "tile", "message"),
    [
        (
            IRIM2D(8, 1, **FAN).build(),
            {"cols": 8},
            "tile.cols is 8, but IRIMReconstructor compares images with k-space, .* "
            "cut rows instead",
        ),
        (RIM(4, 1).build(), {"rows": 4, "cols": 8}, "RIMReconstructor compares"),
        (UNet(2, 1).build(), {"slices": 2}, "UNetReconstructor is given slice after"),
        (IRIM3D(8, 1, **FAN, slab=2).build(), {"slices": 3}, "takes slabs of 2 slices"),
        (abs, {"rows": 4}, "nothing is known of how the images of abs can be cut"),
        (zero_filled, {"rows": 0}, "tile.rows is 0, but must be at least 1"),
    ],
)
def test_tiles_that_would_be_wrong_are_refused(data, tmp_path, method, tile, message):
    with pytest.raises(InputError, match=message):
        volume(method, data, tmp_path / "out", Tile(**tile))
    assert not (tmp_path / "out").exists()


def test_a_method_may_say_itself_how_it_can_be_cut(data, tmp_path):
    class Doubled:
        tile_axes = ("cols",)

        def __call__(self, image, _):
            return 2 * image

    assert tile_axes(Doubled()) == ("cols",)
    found = volume(Doubled(), data, tmp_path, Tile(cols=5))
    assert np.allclose(found, 2 * volume(zero_filled, data, tmp_path), rtol=1e-5)
