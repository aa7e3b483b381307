"""The i-RIM that reconstructs images, and the authors' weights in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from invtorch.planning import measure_memory
from mri_example.errors import InputError
from mri_example.losses import subsampled_nmse
from mri_example.models import IRIM2D, ChallengeIRIM
from mri_example.training.checkpoints import load_authors_weights, own_name
from mri_example.training.module import ReconstructionTask
from mri_example.transforms import ifftc
from tests.tolerances import assert_equal

REFERENCE = Path(__file__).parents[1] / "data/reference_irim_small.npz"


def authors_model(reference, **options) -> IRIM2D:
    channels, steps, *_ = reference["a/cfg"].tolist()
    fan = (reference["a/ks"].tolist(), reference["a/st"].tolist())
    return IRIM2D(channels, steps, *fan, anchors=0, **options).double()


def test_the_weights_of_the_authors_give_their_output_and_gradient() -> None:
    reference = np.load(REFERENCE)
    model = authors_model(reference, final_update=True)
    weights = {
        name.removeprefix("a/p/"): torch.tensor(reference[name])
        for name in reference.files
        if name.startswith("a/p/")
    }
    load_authors_weights(model, weights)
    state, zero_filled, mask, out, cotangent, expected = (
        torch.tensor(reference[f"a/{key}"]) for key in ("x", "y", "m", "o", "w", "gx")
    )
    state.requires_grad_()
    found = model.irim(state, zero_filled, mask)
    assert (found - out).abs().max() < 1e-9
    (found * cotangent).sum().backward()
    assert (state.grad - expected).abs().max() < 1e-9
    own = dict(model.named_parameters())
    for name in weights:
        parameter = own[own_name(name)]
        gradient = torch.tensor(reference[f"a/g/{name}"]).reshape(parameter.shape)
        assert (parameter.grad - gradient).abs().max() < 1e-9
    plain = authors_model(reference)
    load_authors_weights(plain, weights)
    before = plain.irim(state, zero_filled, mask)
    touched = (before - out).abs().amax((0, 2, 3)) > 1e-9
    assert touched.tolist() == [False] * 2 + [True] * 2 + [False] * 4


def test_the_read_out_of_the_authors_computes_what_their_weights_say() -> None:
    reference = np.load(REFERENCE)
    names = [name for name in reference.files if name.startswith("a/p/")]
    weights = {name[4:]: torch.tensor(reference[name]) for name in names}
    channels = reference["a/x"].shape[1]
    shapes = {
        "l1": (channels, channels, 1, 1),
        "l2": (channels, channels, 3, 3),
        "l3": (channels, 2, 1, 1),
    }
    kernels = {}
    for block, shape in shapes.items():
        v = torch.randn(shape, dtype=torch.float64)
        g = torch.rand(channels, 1, 1, 1, dtype=torch.float64)
        kernels[block] = g * v / v.flatten(1).norm(dim=1).view(g.shape)
        weights[f"output_function.{block}.weight_v"] = v
        weights[f"output_function.{block}.weight_g"] = g
    biases = [torch.randn(channels, dtype=torch.float64) for _ in range(2)]
    weights |= {f"output_function.l{i}.bias": b for i, b in enumerate(biases, 1)}
    model = authors_model(reference, final_update=True, read_out="parametric")
    load_authors_weights(model, weights)
    state = torch.tensor(reference["a/o"])
    h = functional.conv2d(state, kernels["l1"], biases[0]).relu()
    h = functional.conv2d(h, kernels["l2"], biases[1], padding=1).relu()
    expected = torch.einsum("bchw,co->bohw", h, kernels["l3"][..., 0, 0])
    assert_equal(model.read_out(state), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rnn.0.layers.0.update_right.l4.bias": 1}, "by its part l4"),
        ({"something": 1}, "'something' is no name of a weight"),
        ({"rnn.7.embeddings.0.weights": 8}, "1 have no place"),
        ({"rnn.0.embeddings.0.weights": 5}, r"in the model, but \(5,\) in the weights"),
        ({"rnn.0.embeddings.0.weights": (8, 3)}, r"\(3, 8\) .* but \(8, 3\) in the"),
    ],
)
def test_weights_that_do_not_fit(change, message) -> None:
    reference = np.load(REFERENCE)
    names = [name for name in reference.files if name.startswith("a/p/")]
    weights = {name[4:]: torch.tensor(reference[name]) for name in names}
    weights |= {name: torch.ones(size) for name, size in change.items()}
    with pytest.raises(InputError, match=message):
        load_authors_weights(authors_model(reference), weights)


def test_the_challenge_divides_by_the_deviation_of_the_center() -> None:
    assert ChallengeIRIM().scale_crop == 320
    model = IRIM2D(8, 1, (4,), (1,), scale_crop=6).double()
    whole = IRIM2D(8, 1, (4,), (1,)).double()
    whole.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 8, 9, dtype=torch.complex128)
    images[..., :2] *= 100  # outside of the six columns in the middle
    center = torch.view_as_real(images[..., 1:7, 1:7]).flatten(1).std(1)
    scale = model.scale_of(images)
    assert_equal(scale.flatten(), center)
    mask = torch.ones(1, 1, 1, 9, dtype=torch.float64)
    assert_equal(model(images, mask), whole(images, mask, scale=scale))
    small = images[..., :5, :4]
    assert_equal(model.scale_of(small), whole.scale_of(small))


@pytest.mark.parametrize("read_out", ["estimate", "parametric"])
@pytest.mark.parametrize(("coils", "multiplicity"), [(1, 1), (1, 2), (2, 1)])
def test_the_reconstructor_scales_with_its_input(read_out, coils, multiplicity) -> None:
    options = {"coils": coils, "multiplicity": multiplicity, "read_out": read_out}
    model = IRIM2D(8, 2, (4, 4), (1, 2), **options).double()
    image = torch.randn(2, coils, 9, 8, dtype=torch.complex128)
    mask = (torch.rand(2, 1, 1, 8) < 0.5).double()
    out = model(image, mask)
    copies = coils if read_out == "estimate" else 1
    assert out.shape == (2, copies, 9, 8)
    assert_equal(model(1e-6 * image, mask), 1e-6 * out)


ALL_STEPS = [
    {"read_out": "estimate"},
    {"read_out": "parametric", "final_update": True},
    {"sensitivity": "calibration"},
    {"coils": None},
]


def of_three_steps(**options) -> IRIM2D:
    """Return an i-RIM whose weights follow from a seed."""
    torch.manual_seed(0)
    return IRIM2D(8, 3, (4, 4), (1, 2), all_steps=True, **options).double()


def two_coils() -> tuple[torch.Tensor, torch.Tensor]:
    """Return zero-filled images and a mask with a center."""
    mask = (torch.rand(2, 1, 1, 12) < 0.5).double()
    mask[..., 4:8] = 1
    return ifftc(mask * torch.randn(2, 2, 10, 12, dtype=torch.complex128)), mask


@pytest.mark.parametrize("options", ALL_STEPS, ids=str)
def test_the_last_of_all_steps_is_the_reconstruction(options) -> None:
    model = of_three_steps(**{"coils": 2} | options)
    images, mask = two_coils()
    estimates = model.trajectory(images, mask)
    assert len(estimates) == 3
    assert_equal(estimates[-1], model(images, mask))
    model.all_steps = False
    (last,) = model.trajectory(images, mask)
    assert_equal(last, estimates[-1])


@pytest.mark.parametrize("options", [ALL_STEPS[0], *ALL_STEPS[2:]], ids=str)
def test_each_step_is_the_end_of_a_model_of_fewer_steps(options) -> None:
    options = {"coils": 2} | options
    model = of_three_steps(**options)
    images, mask = two_coils()
    for steps, estimate in enumerate(model.trajectory(images, mask), 1):
        shorter = IRIM2D(8, steps, (4, 4), (1, 2), **options).double()
        shorter.load_state_dict(model.state_dict(), strict=False)
        assert_equal(shorter(images, mask), estimate)


@pytest.mark.parametrize("anchors", [0, 1, 8, "auto"])
@pytest.mark.parametrize("options", ALL_STEPS, ids=str)
def test_all_steps_have_the_gradients_of_plain_autograd(options, anchors) -> None:
    images, mask = two_coils()
    gradients = []
    for more in ({"memory": "store"}, {"memory": "invert", "anchors": anchors}):
        model = of_three_steps(**{"coils": 2} | options | more)
        losses = [e.abs().square().sum() for e in model.trajectory(images, mask)]
        torch.stack(losses).mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert_equal(gradients[1][name], expected)


def test_states_between_the_steps_are_all_that_more_memory_is_needed_for() -> None:
    images = torch.randn(1, 1, 64, 64, dtype=torch.complex64)
    mask = torch.ones(1, 1, 1, 64)
    peaks = []
    for all_steps in (False, True):
        model = IRIM2D(16, 6, (16, 16, 16, 16), (1, 2, 4, 2), all_steps=all_steps)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def step(model=model) -> None:
            estimates = model.trajectory(images, mask)
            torch.stack([e.abs().mean() for e in estimates]).mean().backward()

        step()
        peaks.append(measure_memory(step).peak)
    state = 16 * 64 * 64 * 4
    assert peaks[1] <= peaks[0] + 3 * 6 * state  # each with magnitudes and gradients


def test_an_empty_slice_stays_finite() -> None:
    model = IRIM2D(8, 1, (4,), (1,))
    out = model(torch.zeros(1, 1, 8, 8, dtype=torch.complex64), torch.ones(1, 1, 1, 8))
    assert torch.isfinite(torch.view_as_real(out)).all()


@pytest.mark.parametrize("channels", [64, 96])
def test_the_read_out_has_the_size_of_the_authors(channels) -> None:
    model = IRIM2D(channels, 1, (4,), (1,), read_out="parametric")
    count = sum(p.numel() for p in model.read_out.parameters())
    assert count == {64: 41_408, 96: 92_832}[channels]


def test_the_loss_is_the_nmse_and_unbiased() -> None:
    target = torch.randn(3, 1, 20, 20, dtype=torch.complex128)
    estimate = target + 0.3 * torch.randn_like(target)
    nmse = [
        ((e - t).abs().square().sum() / t.abs().square().sum()).item()
        for e, t in zip(estimate, target, strict=True)
    ]
    expected = sum(nmse) / 3
    assert subsampled_nmse(estimate, target, 1.0).item() == pytest.approx(expected)
    torch.manual_seed(0)
    draws = [subsampled_nmse(estimate, target, 0.1).item() for _ in range(400)]
    assert sum(draws) / 400 == pytest.approx(expected, rel=0.02)
    assert len(set(draws)) > 300


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IRIM2D(8, 1, (4, 4), (1,)), "hidden has 2 entries"),
        (lambda: IRIM2D(3, 1, (4,), (1,)), "need at least 4"),
        (lambda: IRIM2D(8, 1, (4,), (1,), read_out="x"), "read_out is 'x'"),
        (
            lambda: ReconstructionTask(IRIM2D(8, 1, (4,), (1,)), fraction=0.0),
            "fraction is 0.0",
        ),
        (
            lambda: subsampled_nmse(torch.ones(1, 1, 2), torch.ones(1, 1, 3)),
            "crop both to the same size",
        ),
    ],
)
def test_impossible_arguments(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
