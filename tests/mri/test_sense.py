"""Several coils and volumes: adjoints, gradients, and what other packages compute."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import OrthogonalCoupling
from mri_example import IRIM
from mri_example.masks import Masks
from mri_example.physics import LikelihoodGradient, Measurement
from mri_example.transforms import channels_to_complex, complex_to_channels, fftc, ifftc
from tests.tolerances import assert_equal

spaces = st.lists(st.integers(2, 7), min_size=2, max_size=3).map(tuple)
counts = st.integers(1, 4)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128)


def masked(batch: int, space: tuple[int, ...]) -> torch.Tensor:
    """Draw masks of columns, for volumes of slices and columns."""
    slices = space[:-2] and (space[0],)
    return (torch.rand(batch, 1, *slices, 1, space[-1]) < 0.5).double()


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.vdot(a.flatten(), b.flatten())


@given(spaces)
def test_the_transform_is_unitary_over_two_and_three_axes(space) -> None:
    x, k, dims = draw(2, *space), draw(2, *space), len(space)
    assert_equal(ifftc(fftc(x, dims), dims), x)
    assert_equal(fftc(x, dims).norm(), x.norm())
    assert_equal(inner(k, fftc(x, dims)), inner(ifftc(k, dims), x))
    flat = torch.ones(space, dtype=torch.complex128)
    impulse = torch.zeros_like(flat)
    impulse[tuple(n // 2 for n in space)] = flat.numel() ** 0.5
    assert_equal(fftc(flat, dims), impulse)


def test_transforms_of_other_axes() -> None:
    with pytest.raises(ValueError, match="dims is 1, but k-space has 2 axes"):
        fftc(draw(4, 4), dims=1)


@given(spaces, counts)
def test_the_adjoint_is_the_adjoint(space, coils) -> None:
    model = Measurement(masked(2, space), draw(2, coils, *space), dims=len(space))
    x, k = draw(2, *space), draw(2, coils, *space)
    assert model.forward(x).shape == k.shape
    assert model.adjoint(k).shape == x.shape
    assert_equal(inner(k, model.forward(x)), inner(model.adjoint(k), x), least=1e-3)


@given(spaces)
def test_the_adjoint_of_one_coil_in_volumes(space) -> None:
    model = Measurement(masked(2, space), dims=len(space))
    x, k = draw(2, 1, *space), draw(2, 1, *space)
    assert_equal(inner(k, model.forward(x)), inner(model.adjoint(k), x), least=1e-3)


@given(spaces)
def test_one_coil_that_sees_all_is_a_single_coil(space) -> None:
    mask, ones = masked(1, space)[0], torch.ones(1, *space, dtype=torch.complex128)
    sense, single = (
        Measurement(mask, ones, dims=len(space)),
        Measurement(mask, dims=len(space)),
    )
    x, k = draw(*space), draw(1, *space)
    assert_equal(sense.forward(x), single.forward(x.unsqueeze(0)))
    assert_equal(sense.adjoint(k), single.adjoint(k).squeeze(0))
    gradient = sense.likelihood_gradient(x, sense.adjoint(k))
    assert_equal(gradient, single.likelihood_gradient(x[None], single.adjoint(k))[0])


@given(spaces, counts)
def test_energy_is_kept_by_normalized_maps_and_a_full_mask(space, coils) -> None:
    maps = draw(coils, *space)
    maps /= torch.linalg.vector_norm(maps, dim=0)
    model = Measurement(torch.ones(space[-1]), maps, dims=len(space))
    x = draw(*space)
    assert_equal(model.forward(x).norm(), x.norm())
    assert_equal(model.adjoint(model.forward(x)), x)


@given(spaces, counts, st.integers(1, 3))
def test_the_gradient_is_that_of_the_squared_residual(space, coils, copies) -> None:
    mask, maps = masked(2, space), draw(2, coils, *space)
    model = Measurement(mask, maps, dims=len(space))
    d = model.forward(draw(2, *space))
    estimate = complex_to_channels(draw(2, copies, *space)).requires_grad_()
    likelihood = sum(
        (model.forward(image) - d).abs().square().sum() / 2
        for image in channels_to_complex(estimate).unbind(dim=1)
    )
    (expected,) = torch.autograd.grad(likelihood, estimate)
    zero_filled = model.adjoint(d).unsqueeze(1)
    found = LikelihoodGradient()(estimate, zero_filled, mask, maps)
    assert_equal(found, expected, least=1e-3)


@given(spaces, st.integers(1, 3), st.booleans())
def test_the_gradient_of_one_coil_in_volumes(space, copies, tells_apart) -> None:
    mask = masked(2, space)
    mask = mask if tells_apart or len(space) == 2 else mask[:, :, :1]
    model = Measurement(mask, dims=len(space))
    d = model.forward(draw(2, 1, *space))
    estimate = complex_to_channels(draw(2, copies, *space)).requires_grad_()
    residual = model.forward(channels_to_complex(estimate)) - d
    likelihood = residual.abs().square().sum() / 2
    (expected,) = torch.autograd.grad(likelihood, estimate)
    found = LikelihoodGradient()(estimate, model.adjoint(d), mask)
    assert_equal(found, expected, least=1e-3)


def test_the_gradient_is_differentiable_twice() -> None:
    mask, maps = masked(1, (2, 3, 4)), draw(1, 2, 2, 3, 4).requires_grad_()
    estimate = complex_to_channels(draw(1, 1, 2, 3, 4)).requires_grad_()
    arguments = (estimate, draw(1, 1, 2, 3, 4).requires_grad_(), mask, maps)
    gradient = LikelihoodGradient()
    assert torch.autograd.gradcheck(gradient, arguments)
    assert torch.autograd.gradgradcheck(gradient, arguments, atol=1e-4)


@pytest.mark.parametrize("name", ["mask", "sensitivity_maps"])
def test_data_with_other_axes_do_not_broadcast(name) -> None:
    data = {"mask": torch.ones(1, 1, 1, 4), "sensitivity_maps": draw(1, 2, 4, 4)}
    data[name] = data[name][0]
    message = f"{name} has shape .* but needs 4 axes"
    with pytest.raises(ValueError, match=message):
        LikelihoodGradient()(torch.zeros(1, 2, 4, 4), draw(1, 1, 4, 4), **data)


@pytest.mark.parametrize("space", [(6, 5), (3, 6, 5)])
def test_an_irim_inverts_the_measurement_of_several_coils(space) -> None:
    mask, maps = masked(2, space), draw(2, 3, *space).requires_grad_()
    zero_filled = draw(2, 1, *space)
    conv = torch.nn.Conv2d if len(space) == 2 else torch.nn.Conv3d
    networks = [
        OrthogonalCoupling(conv(3, 3, 3, padding=1), channels=6) for _ in range(3)
    ]
    irim = IRIM(networks, LikelihoodGradient(), anchors=0).double()
    state = torch.randn(2, 6, *space, dtype=torch.float64, requires_grad=True)
    out = irim(state, zero_filled, mask, maps)
    assert_equal(irim.inverse(out, zero_filled, mask, maps), state)
    leaves = [state, maps, *irim.parameters()]
    found = torch.autograd.grad(out.square().sum(), leaves)
    irim.steps.memory = "store"
    plain = irim(state, zero_filled, mask, maps)
    expected = torch.autograd.grad(plain.square().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, least=1e-3)


@given(spaces, counts)
def test_sigpy_agrees(space, coils) -> None:
    sigpy = pytest.importorskip("sigpy")
    linop = pytest.importorskip("sigpy.mri.linop")
    dims, mask = len(space), masked(1, space)[0]
    maps, x, k = draw(coils, *space), draw(*space), draw(coils, *space)
    axes = range(-dims, 0)
    assert_equal(fftc(k, dims), torch.from_numpy(sigpy.fft(k.numpy(), axes=axes)))
    assert_equal(ifftc(k, dims), torch.from_numpy(sigpy.ifft(k.numpy(), axes=axes)))
    weights = mask.expand(coils, *space).numpy()
    theirs, ours = (
        linop.Sense(maps.numpy(), weights=weights),
        Measurement(mask, maps, dims=dims),
    )
    assert_equal(ours.forward(x), torch.from_numpy(theirs(x.numpy())))
    assert_equal(ours.adjoint(k), torch.from_numpy(theirs.H(k.numpy())))


@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_sigpy_draws_masks(acceleration) -> None:
    pytest.importorskip("sigpy")
    function = Masks("poisson", [0.06], [acceleration])
    mask, low = function((1, 48, 3, 64), seed=(1, 2))
    assert mask.equal(function((1, 48, 3, 64), seed=(1, 2))[0])
    assert abs(mask.numel() / mask.sum().item() - acceleration) <= 0.1
    assert (mask.shape, low) == ((1, 48, 1, 64), 4)
    assert mask[0, 23:25, 0, 30:34].all()
