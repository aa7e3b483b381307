"""Write an invertible layer, check it, and train a normalizing flow with it.

    python docs/examples/own_layer.py

The flow learns the density of small patches of a photograph. It needs `scikit-image`
for the photograph, `matplotlib`, and about a minute on two cores. The picture is
docs/images/own_layer.png.
"""

import math

import matplotlib
import matplotlib.pyplot as plt
import skimage.data
import torch
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from invtorch import (
    AffineCoupling,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
)
from invtorch.planning import measure_memory

matplotlib.use("Agg")
GRAY_VALUES, SCALE = 256, 0.15  # patches are about zero on average, of deviation 1


class SmoothLeakyReLU(InvertibleModule):
    """A bent line, y = x + b (sqrt(1 + x^2) - 1), with one learned b per channel.

    Its slope is between 1 - |b| and 1 + |b|. With |b| < 1/2 neither the layer nor its
    inverse amplifies by more than 2.
    """

    def __init__(self, channels):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(channels, 1, 1))

    def bend(self):
        """Return b."""
        return torch.tanh(self.raw) / 2

    def forward(self, x):
        """Return y."""
        return x + self.bend() * ((1 + x.square()).sqrt() - 1)

    def inverse(self, y):
        """Return x, the root of a quadratic equation."""
        b = self.bend()
        t, rest = y + b, 1 - b.square()
        return (t - b * (t.square() + rest).sqrt()) / rest

    def forward_and_log_det(self, x):
        """Return y and log |det dy/dx|, the sum of the log slopes of a sample."""
        slope = 1 + self.bend() * x / (1 + x.square()).sqrt()
        return self.forward(x), slope.log().flatten(1).sum(1)

    def inverse_and_log_det(self, y):
        """Return x and log |det dx/dy|."""
        x = self.inverse(y)
        return x, -self.forward_and_log_det(x)[1]


def flow(blocks, **options):
    """Return a chain of blocks: mix the channels, couple them, bend."""
    layers = []
    for _ in range(blocks):
        conditioner = nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 4, 3, padding=1)
        )
        layers += [Householder1x1(4), AffineCoupling(conditioner), SmoothLeakyReLU(4)]
    return InvertibleSequential(*layers, **options)


def nats(net, x):
    """Return the mean negative log-likelihood under a standard normal base density."""
    z, log_det = net.forward_and_log_det(x)
    log_normal = -(z.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
    return -(log_normal + log_det).mean()


def relative_error(value, reference):
    """Return the norm of the difference, relative to that of the reference."""
    return ((value - reference).norm() / reference.norm()).item()


def check():
    """Compare inverse, log-determinant and gradients with what they should be."""
    net, x = flow(4, anchors=0).double(), torch.randn(2, 4, 3, 3).double()
    for layer in net[2::3]:
        nn.init.normal_(layer.raw)  # 0 is the identity, which would prove little
    y, log_det = net.forward_and_log_det(x)
    jacobian = torch.autograd.functional.jacobian(net, x[:1]).reshape(36, 36)
    gradients = {}
    for net.memory in ("invert", "store"):  # rebuilt states, and plain autograd
        found = torch.autograd.grad(nats(net, x), list(net.parameters()))
        gradients[net.memory] = torch.cat([g.flatten() for g in found])
    errors = {
        "inverse": relative_error(net.inverse(y), x),
        "log-determinant": relative_error(log_det[0], jacobian.slogdet().logabsdet),
        "gradients": relative_error(gradients["invert"], gradients["store"]),
    }
    for name, error in errors.items():
        print(f"{name:16} relative error {error:.1e}")
        assert error < 1e-10, name


def memory(x, depths):
    """Print and return the peak memory of a training step, by strategy and depth."""
    peaks = {"invert": {}, "store": {}}
    for strategy, found in peaks.items():
        for blocks in depths:
            net = flow(blocks, memory=strategy)
            nats(net, x).backward()  # gradients are allocated
            peak = measure_memory(lambda net=net: nats(net, x).backward()).peak / 1e6
            print(f"memory={strategy!r:9} {3 * blocks:3} layers: {peak:5.1f} MB")
            found[3 * blocks] = peak
    return peaks


def patches():
    """Return patches of 8 x 8 pixels as 4 channels on a grid of 4 x 4."""
    image = torch.from_numpy(skimage.data.gravel()).float()
    image += torch.rand(image.shape)  # gray values become continuous
    image = (image / GRAY_VALUES - 0.5) / SCALE
    tiles = image.unfold(0, 8, 4).unfold(1, 8, 4)
    half = len(tiles) // 2  # the upper half of the photograph trains, the other tests
    return tuple(
        pixel_unshuffle(part.reshape(-1, 1, 8, 8), 2)
        for part in (tiles[:half], tiles[half + 1 :])
    )


def gaussian(train, test):
    """Return the negative log-likelihood of a Gaussian with the full covariance."""
    flat = train.flatten(1).double()
    normal = torch.distributions.MultivariateNormal(flat.mean(0), flat.T.cov())
    return -normal.log_prob(test.flatten(1).double()).mean().item()


def draw(net, test, peaks, picture):
    """Show the layer, patches beside samples of the flow, and memory against depth."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
    x, bent = torch.linspace(-4, 4, 81).reshape(1, 1, 1, 81), SmoothLeakyReLU(1)
    for b in (-0.45, 0.0, 0.45):
        nn.init.constant_(bent.raw, math.atanh(2 * b))
        y = bent(x).detach()
        axes[0].plot(x.flatten().numpy(), y.flatten().numpy(), label=f"b = {b}")
    with torch.no_grad():
        samples = net.inverse(torch.randn(36, 4, 4, 4))
    shown = {"patches": test[torch.randint(len(test), (36,))], "samples": samples}
    for axis, (name, chosen) in zip(axes[1:3], shown.items(), strict=True):
        tiles = pixel_shuffle(chosen, 2).reshape(6, 6, 8, 8).transpose(1, 2)
        axis.imshow(tiles.reshape(48, 48).numpy(), cmap="gray", vmin=-3, vmax=3)
        axis.set(title=name, xticks=[], yticks=[])
    for name, found in peaks.items():
        axes[3].plot(*zip(*found.items(), strict=True), "o-", label=f"memory={name!r}")
    axes[0].set(title="the layer", xlabel="x", ylabel="y")
    axes[3].set(xlabel="layers", ylabel="peak of a step (MB)", ylim=(0, None))
    for axis in axes[[0, 3]]:
        axis.legend(fontsize=8)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def main(steps=600, depths=(8, 16, 32, 64), picture="own_layer.png"):
    """Check the layer, measure memory, train, print what was found, and draw."""
    torch.manual_seed(0)
    check()
    train, test = patches()
    peaks = memory(train[:256], depths)
    net = flow(8)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (256,))]
        optimizer.zero_grad()
        nats(net, batch).backward()
        optimizer.step()
    with torch.no_grad():
        found = {"Gaussian": gaussian(train, test), "flow": nats(net, test).item()}
    for name, value in found.items():
        bits = value / 64 / math.log(2) + math.log2(GRAY_VALUES * SCALE)
        print(f"{name:9} {bits:.2f} bits per pixel on the lower half")
    draw(net, test, peaks, picture)


if __name__ == "__main__":
    main()
