"""The examples that train networks run at a small size, and find what they claim."""

import numpy as np
import pytest
import torch

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def check_picture(path: str) -> None:
    """Check that a picture is there, and opaque, so that dark pages show it too."""
    image = pytest.importorskip("matplotlib.image").imread(path)
    assert image.shape[1] >= 500
    assert image.std() > 0.01
    assert image.shape[2] == 3 or (image[..., 3] == 1).all()


def assert_flat(sizes: dict[int, int], plain: dict[int, int]) -> None:
    """Check that memory does not grow with depth, and that of plain autograd does."""
    small, large = sizes
    assert sizes[large] < 1.05 * sizes[small]
    assert plain[large] > 1.5 * plain[small]
    assert sizes[large] < plain[large] / 2


def gradients(net, loss) -> torch.Tensor:
    net.zero_grad()
    loss(net).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


# --- a transformer, a ResNet ----------------------------------------------------------


def test_reversible_transformer(example) -> None:
    names = example("reversible_transformer", "sklearn")
    accuracy, memory = names["main"](depth=2, epochs=8, depths=(16, 32), batch=8)
    assert min(values[-1] for values in accuracy.values()) > 0.6
    assert abs(accuracy["plain"][-1] - accuracy["reversible"][-1]) < 0.2
    assert_flat(memory["reversible"], memory["plain"])
    check_picture("reversible_transformer.png")


def test_the_reversible_transformer_has_the_gradients_of_plain_autograd(
    example,
) -> None:
    names = example("reversible_transformer", "sklearn")
    net = names["Transformer"](12, reversible=True).double()
    x = torch.randn(3, names["TOKENS"], 4, dtype=torch.float64)
    found = {}
    for net.blocks.memory in ("invert", "store"):
        found[net.blocks.memory] = gradients(net, lambda net: net(x).square().sum())
    torch.testing.assert_close(found["invert"], found["store"])


def test_convert_resnet(example) -> None:
    names = example("convert_resnet", "sklearn")
    original, accuracies, memory = names["main"](
        blocks=2, epochs=3, tuning=1, gammas=(0.1, 0.9), depths=(16, 32)
    )
    assert original > 0.8
    assert accuracies[0.1][0] > accuracies[0.9][0]  # a small gamma changes little
    assert min(tuned for _, tuned in accuracies.values()) > original - 0.15
    assert_flat(memory["converted"], memory["ResNet"])
    check_picture("convert_resnet.png")


# --- inverse problems -----------------------------------------------------------------


def assert_adjoint(forward, adjoint, x) -> None:
    x = x.requires_grad_()
    d = torch.randn_like(forward(x))
    (gradient,) = torch.autograd.grad(forward(x), x, d)
    torch.testing.assert_close(adjoint(d), gradient)


def fell(losses: list[float]) -> bool:
    return sum(losses[-20:]) < 0.97 * sum(losses[:20])


def test_deblurring(example) -> None:
    names = example("deblurring", "skimage")
    losses, quality, memory = names["main"](
        steps=2, iterations=60, size=24, batch=4, depths=(8, 16)
    )
    assert fell(losses)
    assert quality["i-RIM"] > quality["blurred"] + 1
    assert_flat(memory["invert"], memory["store"])
    check_picture("deblurring.png")


def test_the_blur_has_its_adjoint(example) -> None:
    names = example("deblurring", "skimage")
    x = torch.randn(2, 1, 20, 23)
    assert_adjoint(names["forward_operator"], names["adjoint"], x)
    assert names["KERNEL"].sum().item() == pytest.approx(1)


def test_ct(example) -> None:
    names = example("ct", "skimage")
    losses, quality = names["main"](size=32, views=12, steps=2, iterations=100, batch=4)
    assert fell(losses)
    assert quality["i-RIM"] > quality["FBP"] + 0.1
    check_picture("ct.png")


@pytest.mark.parametrize(("size", "views"), [(32, 12), (47, 30), (64, 90)])
def test_the_scanner_is_that_of_scikit_image(example, size, views) -> None:
    from skimage.data import shepp_logan_phantom
    from skimage.transform import iradon, radon, resize

    scanner = example("ct", "skimage")["ParallelBeam"](size, views)
    assert_adjoint(scanner, scanner.adjoint, torch.randn(2, 1, size, size))
    phantom = resize(shepp_logan_phantom(), (size, size))
    seen = scanner.adjoint(torch.ones(1, 1, views, size))[0, 0] > 0
    phantom = phantom * seen.numpy()
    degrees = np.arange(views) * 180 / views
    theirs = radon(phantom, degrees)
    image = torch.from_numpy(phantom).float()[None, None]
    sinogram = scanner(image)
    ours = sinogram[0, 0].T.numpy()
    assert np.linalg.norm(ours - theirs) < 0.08 * np.linalg.norm(theirs)
    filtered = scanner.filtered(sinogram)[0, 0].numpy()
    assert abs(filtered.mean() / iradon(theirs, degrees).mean() - 1) < 0.05


# --- coming from elsewhere, and going on ----------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning:memcnn")
def test_from_memcnn(example) -> None:
    names = example("from_memcnn", "sklearn")
    losses, memory, works, states = names["main"](wrappers=3, epochs=1, depths=(16, 64))
    ours = names["LIBRARIES"][1]
    assert set(works[ours].values()) == {True}
    assert sum(losses[ours][-9:]) < 0.75 * sum(losses[ours][:9])
    assert_flat(memory[ours], memory["plain autograd"])
    check_picture("from_memcnn.png")
    if "memcnn" not in losses:
        pytest.skip("memcnn is not installed: nothing to compare with")
    assert losses[ours][:5] == pytest.approx(losses["memcnn"][:5], rel=1e-3)
    assert states[ours].keys() == states["memcnn"].keys()


@pytest.mark.filterwarnings("ignore")  # of Lightning, which says what else it can do
def test_lightning_denoising(example) -> None:
    names = example("lightning_denoising", "lightning", "skimage")
    quality, memory = names["main"](blocks=3, epochs=6, depths=(16, 32))
    assert quality["denoised"] > quality["noisy"] + 1
    assert quality["denoised"] == pytest.approx(quality["checkpoint"], abs=1e-3)
    assert_flat(memory["invert"], memory["store"])
    check_picture("lightning_denoising.png")


def test_per_sample_gradients(example) -> None:
    names = example("per_sample_gradients", "sklearn")
    error, found, memory = names["main"](blocks=2, epochs=4, depths=(16, 32))
    assert error < 1e-5
    assert found > 0.5
    (small, _), (large, _) = memory.values()
    assert large > 1.5 * small
    (_, small), (_, large) = memory.values()
    assert large < 1.2 * small
    check_picture("per_sample_gradients.png")


def test_clipped_gradients_are_the_sum_of_the_clipped_ones(example) -> None:
    names = example("per_sample_gradients", "sklearn")
    net, labels = names["network"](12), torch.arange(5)
    x = names["state"](torch.randn(5, 1, 8, 8))
    each = names["with_vmap"](net, x, labels)
    flat = torch.cat([g.flatten(1) for g in each.values()], 1)
    norms = flat.norm(dim=1)
    limit = norms.median()
    expected = (flat * (limit / norms).clamp(max=1)[:, None]).sum(0)
    names["clipped_gradient"](net, x, labels, limit)
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
