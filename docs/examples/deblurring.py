"""Deblur photographs with an i-RIM: an inverse problem with an own forward operator.

    python docs/examples/deblurring.py

The camera was shaken during the exposure: the data are the scene, averaged along the
path of the camera, plus noise. For another problem, replace `forward_operator` and
`adjoint`; the network sees the operator in `gradient` only. Needs `scikit-image` for
the photographs, and about three minutes on two cores.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from skimage.color import rgb2gray
from skimage.restoration import wiener
from torch.nn.functional import conv2d, conv_transpose2d

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.nets import IRIM
from invtorch.planning import measure_memory

CHANNELS, BORDER, NOISE = 16, 4, 0.01  # the kernel has 9 x 9 pixels
PICTURE = "deblurring.png"
SEEN = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))


def camera_path():
    """Return the kernel: how long the camera was at each of 9 x 9 places."""
    time = torch.linspace(0, 1, 500)
    path = 3.5 * torch.sin(2.5 * time), 3.5 * torch.cos(4 * time)
    places = tuple((BORDER + x).round().long() for x in path)
    share = torch.full_like(time, 1 / 500)
    return torch.zeros(9, 9).index_put(places, share, accumulate=True)[None, None]


KERNEL = camera_path()


def forward_operator(scene):
    """Return A p: what the camera records. It sees less than the whole scene."""
    return conv2d(scene, KERNEL)


def adjoint(data):
    """Return A* d, such that <A p, d> = <p, A* d>."""
    return conv_transpose2d(data, KERNEL)


def gradient(estimate, data):
    """Return the gradient of the data term, 5 |A p - d|^2."""
    return 10 * adjoint(forward_operator(estimate) - data)


def network(steps, **options):
    """Return an i-RIM: in each step a fine and a coarse coupling."""

    def step():
        half = CHANNELS // 2
        fine = GatedResidualBlock(half, half, hidden=16)
        coarse = GatedResidualBlock(half, half, hidden=32, stride=2)
        couplings = [OrthogonalCoupling(b, channels=CHANNELS) for b in (fine, coarse)]
        return InvertibleSequential(*couplings)

    networks = [step() for _ in range(steps)]
    return IRIM(networks, gradient, estimate_channels=1, **options)


def reconstruct(net, data):
    """Return the estimate of the scene after the last step."""
    seen = adjoint(torch.ones_like(data))
    first = adjoint(data) / seen.clamp(min=0.05)  # weighted average of what was seen
    empty = first.new_zeros(len(first), CHANNELS - 1, *first.shape[2:])
    return net(torch.cat([first, empty], 1), data)[:, :1]


def blurred(scene, generator):
    """Return the data of a scene."""
    data = forward_operator(scene)
    return data + NOISE * torch.randn(data.shape, generator=generator)


def crops(photographs, size, count, generator):
    """Return random crops of the photographs."""

    def below(n):
        return int(torch.randint(n, (), generator=generator))

    found = []
    for _ in range(count):
        photo = photographs[below(len(photographs))]
        row, col = (below(n - size) for n in photo.shape)
        found.append(photo[row : row + size, col : col + size])
    return torch.stack(found)[:, None]


def psnr(estimate, scene):
    """Return the peak signal-to-noise ratio in dB, of what the camera sees."""
    return -10 * math.log10((estimate - scene)[SEEN].square().mean().item())


def best_wiener(data, scene):
    """Return the best of Wiener filters of many strengths, chosen with the truth."""
    padded = np.pad(data[0, 0].numpy(), 3 * BORDER, mode="reflect")
    point_spread = KERNEL[0, 0].flip(0, 1).numpy()  # conv2d correlates
    cut = slice(2 * BORDER, -2 * BORDER)
    found = [
        torch.from_numpy(wiener(padded, point_spread, balance, clip=False)[cut, cut])
        for balance in np.geomspace(1e-4, 1, 17)
    ]
    return max(found, key=lambda image: psnr(image, scene))[None, None]


def train(net, photographs, iterations, size, batch):
    """Train on random crops, and return the losses."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for _ in range(iterations):
        scene = crops(photographs, size, batch, generator)
        optimizer.zero_grad()
        loss = (reconstruct(net, blurred(scene, generator)) - scene).abs().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def peak(steps, memory, size, batch):
    """Return the bytes of activations of a training step at its peak."""
    net, data = network(steps, memory=memory), torch.rand(batch, 1, size, size)
    reconstruct(net, data).sum().backward()  # gradients are allocated
    return measure_memory(lambda: reconstruct(net, data).sum().backward()).peak


def draw(images, memory, picture):
    """Draw the images beside each other, and memory against the number of steps."""
    figure, panels = plt.subplots(
        1, 5, figsize=(13, 3.1), layout="constrained", width_ratios=[1, 1, 1, 1, 1.2]
    )
    for axes, (title, image) in zip(panels, images.items(), strict=False):
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    for name, style in {"store": "C1s--", "invert": "C0o-"}.items():
        values = [b / 1e6 for b in memory[name].values()]
        panels[4].plot(memory[name].keys(), values, style, label=f"memory={name!r}")
    panels[4].set(xlabel="steps of the i-RIM", ylabel="activations (MB)")
    panels[4].set_title("Memory of training", fontsize=11)
    panels[4].set_ylim(bottom=0)
    panels[4].legend(frameon=False)
    panels[4].spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def main(
    steps=4, iterations=900, size=40, batch=16, depths=(4, 8, 16, 32), picture=PICTURE
):
    """Train, deblur another photograph, measure; return what was found."""
    torch.manual_seed(0)
    data = skimage.data
    colored = data.astronaut(), data.coffee(), data.chelsea(), data.rocket()
    photographs = [torch.from_numpy(rgb2gray(photo)).float() for photo in colored]
    net = network(steps)
    losses = train(net, photographs, iterations, size, batch)
    scene = torch.from_numpy(data.camera()[60:236, 150:326]).float()[None, None] / 255
    data = blurred(scene, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = {
            "blurred": torch.nn.functional.pad(data, (BORDER,) * 4),
            "best Wiener filter": best_wiener(data, scene),
            "i-RIM": reconstruct(net, data),
        }
    quality = {name: psnr(image, scene) for name, image in found.items()}
    for name, value in quality.items():
        print(f"{name:18} {value:5.2f} dB")
    images = {"scene": scene[SEEN][0, 0]}
    for name, image in found.items():
        images[f"{name}: {quality[name]:.1f} dB"] = image[SEEN][0, 0]
    memory = {}
    for name in ("store", "invert"):
        memory[name] = {d: peak(d, name, size, batch) for d in depths}
        for depth, size_of in memory[name].items():
            print(f"memory={name!r:8} {depth:2} steps: {size_of / 1e6:6.1f} MB")
    draw(images, memory, picture)
    return losses, quality, memory


if __name__ == "__main__":
    main()
