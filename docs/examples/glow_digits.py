"""Train a multi-scale Glow on digits: bits per dimension, samples, memory.

    python docs/examples/glow_digits.py

The digits are 1,797 of 8 x 8 pixels with 17 gray values, from the package scikit-learn.
On digits that did not train it, the flow needs 2.11 bits per dimension, and a histogram
of each pixel 2.37. It needs `matplotlib` too, and two minutes of one core. The picture
is docs/images/glow_digits.png.
"""

import math

import matplotlib
import torch
from sklearn.datasets import load_digits

from invtorch import InvertibleSequential, Logit
from invtorch.flows import Dequantize, Flow, StandardNormal
from invtorch.nets import Glow
from invtorch.planning import measure_memory

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LEVELS, TEST = 17, 297
TEMPERATURES = (0.0, 0.7, 1.0)


def digits():
    """Return training and test images of whole numbers, `(count, 1, 8, 8)`."""
    images = torch.tensor(load_digits().images).long()[:, None]
    return images[:-TEST], images[-TEST:]


def digit_flow(steps, hidden=48, **options):
    """Return a Glow of two levels behind a logit, as a density of whole numbers."""
    glow = Glow(1, levels=2, steps=steps, hidden=hidden)
    base = StandardNormal(glow.latent_shapes((8, 8)))
    net = InvertibleSequential(Logit(0.02), glow, **options)
    return Flow(net, base, dequantize=Dequantize(LEVELS))


def peak(flow, x):
    """Return the peak of the memory of a training step, in MB."""

    def step():
        flow.bits_per_dim(x).mean().backward()

    step()  # initializes, and allocates the gradients
    return measure_memory(step).peak / 1e6


def peaks(x, depths):
    """Return the peaks by depth of inversion, and of plain autograd."""
    return {
        memory: {steps: peak(digit_flow(steps, memory=memory), x) for steps in depths}
        for memory in ("invert", "store")
    }


def independent_bits(train, test):
    """Return the bits per pixel of a histogram of each pixel."""
    counts = torch.nn.functional.one_hot(train, LEVELS).sum(0) + 1.0
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    chosen = log_p.expand(len(test), *log_p.shape).gather(-1, test[..., None])
    return -chosen.mean().item()


def draw(flow, memory, path):
    """Save samples at three temperatures, and memory against depth."""
    rows, columns = 6, 6
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
    for axis, temperature in zip(axes, TEMPERATURES, strict=False):
        with torch.no_grad():
            x = flow.sample(rows * columns, temperature=temperature)
        tiles = x.reshape(rows, columns, 8, 8).transpose(1, 2)
        axis.imshow(tiles.reshape(8 * rows, -1).numpy(), cmap="gray_r", vmin=0)
        axis.set(title=f"samples, temperature {temperature}", xticks=[], yticks=[])
    for name, values in memory.items():
        layers = [2 * 3 * steps for steps in values]
        axes[3].plot(layers, values.values(), marker="o", label=f"memory={name!r}")
    axes[3].set(xlabel="layers", ylabel="peak of a step (MB)", ylim=(0, None))
    axes[3].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(steps=900, glow_steps=4, depths=(2, 4, 8, 16, 32), path="glow_digits.png"):
    """Train, print bits per dimension and memory, and save a picture."""
    torch.manual_seed(0)
    train, test = digits()
    memory = peaks(train[:32], depths)
    for name, values in memory.items():
        shown = ", ".join(f"{value:.1f}" for value in values.values())
        print(f"memory={name!r}: {shown} MB with {depths} steps per level")
    flow = digit_flow(glow_steps)
    optimizer = torch.optim.Adam(flow.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = flow.bits_per_dim(train[torch.randint(len(train), (64,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = {
            "uniform": math.log2(LEVELS),
            "histogram of each pixel": independent_bits(train, test),
            "Glow, training digits": flow.bits_per_dim(train).mean().item(),
            "Glow, test digits": flow.bits_per_dim(test).mean().item(),
        }
    for name, bits in found.items():
        print(f"{name}: {bits:.2f} bits per dimension")
    draw(flow, memory, path)
    return found, memory


if __name__ == "__main__":
    main()
