"""Reconstruct few-view CT with an i-RIM: an operator that is a sparse matrix.

    python docs/examples/ct.py

A parallel-beam scanner measures line integrals of an object under 24 angles, with
noise. Filtered back-projection (FBP) of so few views has streaks. An i-RIM, trained on
random ellipses alone, starts at the FBP and removes them from the Shepp-Logan phantom.
Needs `scikit-image` for the phantom, and about three minutes on two cores.
"""

import math

import matplotlib.pyplot as plt
import skimage.data
import torch
from skimage.transform import resize

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.nets import IRIM

CHANNELS, NOISE = 16, 0.2  # noise of a line integral; the largest are about 16


class ParallelBeam:
    """Line integrals of images of `size` x `size` pixels under `views` angles.

    A pixel counts for the two nearest cells of the detector, in proportion to its
    distance: these weights are the matrix, and the adjoint is its transpose.
    """

    def __init__(self, size, views):
        self.size, self.views = size, views
        angles = torch.arange(views) * math.pi / views
        at = torch.arange(size) - size // 2
        inside = (at.square()[:, None] + at.square()).sqrt() < size // 2 - 1
        rows, cols = inside.nonzero().T
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        place = size // 2 + (at[cols] * cos - at[rows] * sin)
        low, part = place.floor().long(), place % 1
        cell = torch.arange(views)[:, None] * size + low
        pixel = (rows * size + cols).expand(views, -1)
        index = torch.stack([torch.cat([cell, cell + 1]), torch.cat([pixel, pixel])])
        matrix = torch.sparse_coo_tensor(
            index.flatten(1),
            torch.cat([1 - part, part]).flatten(),
            (views * size, size * size),
            check_invariants=True,
        )
        self.matrix = matrix.coalesce()
        self.transposed = self.matrix.t().coalesce()
        at = torch.arange(1, 2 * size)
        at = torch.minimum(at, 2 * size - at)
        ramp = torch.where(at % 2 == 1, -1 / (math.pi * at).square(), 0)
        ramp = torch.cat([torch.tensor([0.25]), ramp])  # in space: no offset
        self.ramp = math.pi / views * torch.fft.rfft(ramp).real

    def __call__(self, image):
        """Return the sinogram, `(batch, 1, views, size)`."""
        lines = torch.sparse.mm(self.matrix, image.flatten(1).T)
        return lines.T.reshape(-1, 1, self.views, self.size)

    def adjoint(self, sinogram):
        """Return the unfiltered back-projection."""
        image = torch.sparse.mm(self.transposed, sinogram.flatten(1).T)
        return image.T.reshape(-1, 1, self.size, self.size)

    def filtered(self, sinogram):
        """Return the filtered back-projection, an approximate inverse."""
        spectrum = torch.fft.rfft(sinogram, 2 * self.size) * self.ramp
        return self.adjoint(torch.fft.irfft(spectrum)[..., : self.size])

    def gradient(self, estimate, sinogram):
        """Return the gradient of the data term, 2 |A p - d|^2 / (size * views)."""
        residual = self(estimate) - sinogram
        return self.adjoint(residual) * (4 / (self.size * self.views))


def network(scanner, steps):
    """Return an i-RIM: in each step a fine and a coarse coupling."""

    def step():
        half = CHANNELS // 2
        fine = GatedResidualBlock(half, half, hidden=16)
        coarse = GatedResidualBlock(half, half, hidden=32, stride=2)
        couplings = [OrthogonalCoupling(b, channels=CHANNELS) for b in (fine, coarse)]
        return InvertibleSequential(*couplings)

    steps = [step() for _ in range(steps)]
    return IRIM(steps, scanner.gradient, estimate_channels=1)


def reconstruct(net, scanner, sinogram):
    """Return the image after the last step, which started at the FBP."""
    first = scanner.filtered(sinogram)
    empty = first.new_zeros(len(first), CHANNELS - 1, *first.shape[2:])
    return net(torch.cat([first, empty], 1), sinogram)[:, :1]


def ellipses(size, count, generator):
    """Return images of random ellipses inside of a random shell."""

    def uniform(low, high, *shape):
        values = torch.rand(count, *shape, 1, 1, generator=generator)
        return low + (high - low) * values

    def drawn(row, col, height, width, angle):
        y, x = grid[:, None] - row, grid - col
        u = x * angle.cos() + y * angle.sin()
        v = y * angle.cos() - x * angle.sin()
        return ((u / width).square() + (v / height).square() < 1).float()

    grid = torch.linspace(-1, 1, size)
    place = uniform(-0.05, 0.05), uniform(-0.05, 0.05)
    height, width, angle = uniform(0.7, 0.92), uniform(0.6, 0.85), uniform(-0.3, 0.3)
    shell, thick = drawn(*place, height, width, angle), uniform(0.03, 0.1)
    hollow = drawn(*place, height - thick, width - thick, angle)
    image = shell * uniform(0.5, 1) - hollow * uniform(0.3, 0.9)
    for _ in range(8):
        place = uniform(-0.6, 0.6), uniform(-0.6, 0.6)
        sizes = uniform(0.03, 0.35), uniform(0.03, 0.35)
        inner = drawn(*place, *sizes, uniform(0, math.pi))
        image += inner * hollow * uniform(-0.3, 0.3)
    return image.clamp(0, 1)[:, None]


def measured(scanner, image, generator):
    """Return the sinogram with noise."""
    sinogram = scanner(image)
    return sinogram + NOISE * torch.randn(sinogram.shape, generator=generator)


def train(net, scanner, iterations, batch):
    """Train on random ellipses, and return the losses."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for _ in range(iterations):
        image = ellipses(scanner.size, batch, generator)
        sinogram = measured(scanner, image, generator)
        optimizer.zero_grad()
        loss = (reconstruct(net, scanner, sinogram) - image).abs().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def draw(images, sinogram, picture):
    """Draw the phantom, its sinogram, and both reconstructions."""
    figure, panels = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained")
    panels[1].imshow(sinogram.numpy(), cmap="gray", aspect="auto")
    panels[1].set(xlabel="detector cell", ylabel="angle", xticks=[], yticks=[])
    panels[1].set_title(f"measured: {len(sinogram)} angles", fontsize=11)
    for axes, (title, image) in zip(panels[[0, 2, 3]], images.items(), strict=True):
        axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=0.6)
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def main(size=64, views=24, steps=4, iterations=500, batch=8, picture="ct.png"):
    """Train on ellipses, reconstruct the phantom; return losses and PSNR."""
    torch.manual_seed(0)
    scanner = ParallelBeam(size, views)
    net = network(scanner, steps)
    losses = train(net, scanner, iterations, batch)
    phantom = resize(skimage.data.shepp_logan_phantom(), (size, size))
    phantom = torch.from_numpy(phantom).float()[None, None]
    sinogram = measured(scanner, phantom, torch.Generator().manual_seed(1))
    found = {"FBP": scanner.filtered(sinogram)}
    with torch.no_grad():
        found["i-RIM"] = reconstruct(net, scanner, sinogram)
    quality, images = {}, {"Shepp-Logan phantom": phantom[0, 0]}
    for name, image in found.items():
        error = (image - phantom).square().mean().item()
        quality[name] = -10 * math.log10(error)
        print(f"{name:6} {quality[name]:5.2f} dB")
        images[f"{name}: {quality[name]:.1f} dB"] = image[0, 0]
    draw(images, sinogram[0, 0], picture)
    return losses, quality


if __name__ == "__main__":
    main()
