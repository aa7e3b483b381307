"""Does a network of 1,000 layers train as with checkpointing?

`python -m benchmarks.deep_training`: patches of real anatomy are denoised by 1,000
couplings. Each of two seeds is trained twice from the same start, once rebuilding
activations with the defaults, once with checkpointing. Step by step, the difference of
the two losses is compared with the difference between the two seeds.
"""

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import write
from invtorch import InvertibleSequential, OrthogonalCoupling
from mri_example.data.anatomy import embedded_anatomy

LAYERS, CHANNELS, SIZE, BATCH = 1000, 8, 16, 8
NOISE, RATE = 0.5, 3e-5
STRATEGIES = {"inverted (default)": "invert", "checkpoint": "checkpoint"}


def patches() -> Tensor:
    """Return patches of the embedded heads, scaled to unit variance."""
    found = []
    for volume in embedded_anatomy().values():
        slices = torch.as_tensor(volume)
        tiles = slices.unfold(1, SIZE, SIZE).unfold(2, SIZE, SIZE)
        found.append(tiles.reshape(-1, 1, SIZE, SIZE))
    tiles = torch.cat(found)
    tiles = tiles[tiles.std(dim=(1, 2, 3)) > tiles.std() / 4]
    return tiles / tiles.std()


def network(layers: int) -> InvertibleSequential:
    """Return the chain; small conditioners let the state keep its size."""

    def conditioner() -> nn.Module:
        last = nn.Conv2d(8, CHANNELS // 2, 3, padding=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
        return nn.Sequential(nn.Conv2d(CHANNELS // 2, 8, 3, padding=1), nn.SiLU(), last)

    return InvertibleSequential(
        *[OrthogonalCoupling(conditioner(), channels=CHANNELS) for _ in range(layers)]
    )


def train(seed: int, memory: str, steps: int, layers: int, data: Tensor) -> list[float]:
    """Return the loss of every step."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = network(layers)
    net.memory = memory
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    losses = []
    for step in range(steps):
        drawn = torch.randint(0, len(data), (BATCH,), generator=generator)
        clean = data[drawn]
        noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
        optimizer.zero_grad()
        restored = net(noisy.repeat(1, CHANNELS, 1, 1)).mean(1, keepdim=True)
        loss = (restored - clean).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        print(f"seed {seed}, {memory:10}, step {step:3}: {losses[-1]:.5f}", flush=True)
    return losses


def main() -> None:
    """Train, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    data = patches()
    curves = {
        (seed, name): train(seed, memory, options.steps, options.layers, data)
        for seed in (0, 1)
        for name, memory in STRATEGIES.items()
    }
    inverted, checkpoint = STRATEGIES
    apart = [
        abs(a - b)
        for seed in (0, 1)
        for a, b in zip(curves[seed, inverted], curves[seed, checkpoint], strict=True)
    ]
    spread = [
        abs(a - b)
        for a, b in zip(curves[0, checkpoint], curves[1, checkpoint], strict=True)
    ]
    within = sum(d <= s for d, s in zip(apart, spread * 2, strict=True))
    print(
        f"{within} of {len(apart)} steps lie within the spread of the two seeds; the "
        f"losses are at most {max(apart):.1e} apart, the seeds {min(spread):.1e} to "
        f"{max(spread):.1e}, median {statistics.median(spread):.1e}"
    )
    rows: list[dict[str, Any]] = [
        {"seed": seed, "strategy": name, "losses": losses}
        for (seed, name), losses in curves.items()
    ]
    settings = {"layers": options.layers, "channels": CHANNELS, "size": SIZE}
    settings |= {"batch": BATCH, "noise": NOISE, "learning_rate": RATE}
    settings |= {"within_spread": within, "steps_compared": len(apart)}
    settings |= {"largest_difference": max(apart), "smallest_spread": min(spread)}
    write("deep_training", settings, rows)


if __name__ == "__main__":
    main()
