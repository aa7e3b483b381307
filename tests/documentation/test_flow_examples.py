"""The examples of flows and of the U-Net run at a small size, with what they claim."""

import pytest
import torch
from matplotlib.image import imread


def check_picture(path: str) -> None:
    """Check that a picture is there, and opaque, so that dark pages show it too."""
    image = imread(path)
    assert image.shape[1] >= 400
    assert image.std() > 0.01
    assert image.shape[2] == 3 or (image[..., 3] == 1).all()


def assert_flat(peaks: dict[str, dict[int, float]]) -> None:
    """Check that memory does not grow with depth, and that of plain autograd does."""
    small, large = peaks["invert"]
    assert peaks["invert"][large] < 1.1 * peaks["invert"][small]
    assert peaks["store"][large] > 1.5 * peaks["store"][small]
    assert peaks["invert"][large] < peaks["store"][large] / 2


def test_spline_flow(example) -> None:
    names = example("spline_flow", "sklearn")
    nats, error, peaks = names["main"](steps=60, couplings=4)
    assert nats["the flow"] < nats["a normal distribution"]
    assert error < 1e-3
    assert_flat(peaks)
    check_picture("spline_flow.png")


def test_the_density_of_the_moons_integrates_to_one(example) -> None:
    names = example("spline_flow", "sklearn")
    torch.manual_seed(0)
    flow = names["moons_flow"](4)
    flow.log_prob(*names["moons"](256, 0))  # initializes
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    side = torch.linspace(-8, 8, 400)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = flow.log_prob(points, torch.ones(len(points), 1)).exp()
    assert p.sum().item() * (16 / 399) ** 2 == pytest.approx(1, abs=0.02)


def test_conditional_glow(example) -> None:
    names = example("conditional_glow", "skimage")
    bits, errors, samples = names["main"](steps=30, glow_steps=1, count=4)
    assert bits < 6  # what 64 levels need without a model
    assert samples.shape == (10, 4, 1, 24, 12)
    assert 0 < samples.min() <= samples.max() < 1
    assert errors["mean of the samples"] < 0.2
    assert errors["linear guess"] < errors["average face"]
    check_picture("conditional_glow.png")


def test_the_halves_of_a_face_lie_on_each_other(example) -> None:
    names = example("conditional_glow", "skimage")
    train, test = names["faces"]()
    assert (len(train), len(test)) == (180, 10)
    known, right = names["halves"](torch.cat([test, test.flip(3)], 3))
    assert torch.equal(known, right.float() / 64 - 0.5)


def test_the_guess_for_a_face_is_of_a_regression_that_has_not_seen_it(example) -> None:
    names = example("conditional_glow", "skimage")
    train, _ = names["faces"]()
    known, right = names["halves"](train)
    guesses = names["guesses_of_others"](known, right)
    right[[7, 97]] = 0  # a face and its mirror image
    assert torch.equal(names["guesses_of_others"](known, right)[7], guesses[7])
    assert not torch.equal(names["guesses_of_others"](known, right)[8], guesses[8])


def test_glow_digits(example) -> None:
    names = example("glow_digits", "sklearn")
    bits, memory = names["main"](steps=20, glow_steps=1, depths=(4, 16))
    assert bits["Glow, test digits"] < bits["uniform"]
    assert_flat(memory)
    check_picture("glow_digits.png")


def test_unet_segmentation(example) -> None:
    names = example("unet_segmentation", "skimage", "nibabel")
    overlaps, peaks = names["main"](steps=3, sizes=(24, 9), depths=(2, 8))
    assert all(0 <= d <= 1 for pair in overlaps for d in pair)
    for each in peaks:
        assert_flat(each)
    check_picture("unet_segmentation.png")


def test_the_overlap_is_that_of_the_formula(example) -> None:
    dice = example("unet_segmentation", "skimage", "nibabel")["dice"]
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    assert dice(labels, labels) == 1
    found = torch.tensor([0, 1, 0, 2, 0, 0])
    assert dice(found, labels) == pytest.approx((2 / 3 + 1 / 2) / 2)
