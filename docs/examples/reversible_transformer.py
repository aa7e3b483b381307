"""Train a reversible transformer on digits, beside a plain one of the same layers.

    python docs/examples/reversible_transformer.py

A plain block adds attention and then a feed-forward network to one stream,
x + f(x) twice. A reversible block adds them to two streams in turns, so that its input
can be rebuilt from its output, and a training step takes the memory of one block
whatever the depth. Both have the same numbers of parameters. Needs `scikit-learn`,
which contains the digits; about two minutes on two cores.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from invtorch import InvertibleSequential, ReversibleBlock
from invtorch.planning import measure_memory

WIDTH, HEADS, TOKENS = 32, 4, 16  # a digit has 4 x 4 tokens, each of 2 x 2 pixels


class Attention(nn.Module):
    """Attention on normalized tokens."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        """Return what a block adds."""
        h = self.norm(x)
        return self.attention(h, h, h, need_weights=False)[0]


def feed_forward():
    """Return the network that acts on each token."""
    return nn.Sequential(
        nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)
    )


class PlainBlock(nn.Module):
    """The block of a plain transformer."""

    def __init__(self):
        super().__init__()
        self.f, self.g = Attention(), feed_forward()

    def forward(self, x):
        """Add attention, then the feed-forward network."""
        x = x + self.f(x)
        return x + self.g(x)


class Transformer(nn.Module):
    """Embedding, blocks, and a classifier of the mean over all tokens."""

    def __init__(self, depth, reversible):
        super().__init__()
        self.reversible = reversible
        self.embed = nn.Linear(4, WIDTH)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) / 10)
        if reversible:
            blocks = [
                ReversibleBlock(Attention(), feed_forward(), dim=-1)
                for _ in range(depth)
            ]
            self.blocks = InvertibleSequential(*blocks)
        else:
            self.blocks = nn.Sequential(*[PlainBlock() for _ in range(depth)])
        self.classify = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, patches):
        """Return the scores of the ten classes."""
        x = self.embed(patches) + self.position
        if self.reversible:  # two streams, which begin equal; their mean is the result
            x = torch.cat([x, x], dim=-1)
            x = sum(self.blocks(x).chunk(2, dim=-1)) / 2
        else:
            x = self.blocks(x)
        return self.classify(x.mean(1))


def digits():
    """Return tokens and labels, to train with and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 4, 2, 4, 2) / 8 - 1
    tokens = images.transpose(2, 3).reshape(-1, TOKENS, 4)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    tokens, labels = tokens[order], torch.tensor(labels)[order]
    return tokens[:1347], labels[:1347], tokens[1347:], labels[1347:]


def train(net, data, epochs, batch=64):
    """Train, and return the accuracy on the test digits after each epoch."""
    x, labels, test_x, test_labels = data
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    accuracies = []
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            cross_entropy(net(x[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            correct = net(test_x).argmax(1) == test_labels
        accuracies.append(correct.float().mean().item())
    return accuracies


def peak(reversible, depth, batch):
    """Return the bytes of activations of a training step at its peak."""
    net, x = Transformer(depth, reversible), torch.randn(batch, TOKENS, 4)
    net(x).sum().backward()  # gradients are allocated
    return measure_memory(lambda: net(x).sum().backward()).peak


def draw(accuracy, memory, picture):
    """Draw accuracy against epochs, and memory against depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    styles = {"plain": ("C1", "s--"), "reversible": ("C0", "o-")}
    for name, (color, style) in styles.items():
        epochs = range(1, len(accuracy[name]) + 1)
        percent = [100 * a for a in accuracy[name]]
        label = f"{name}: {percent[-1]:.1f} % at the end"
        left.plot(epochs, percent, style[1:], color=color, label=label)
        depths, peaks = memory[name].keys(), [b / 1e6 for b in memory[name].values()]
        right.plot(depths, peaks, style, color=color, label=name)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="epoch", ylabel="accuracy on test digits (%)", ylim=(60, 101))
    right.set(xlabel="blocks", ylabel="activations of a training step (MB)")
    right.set_ylim(bottom=0)
    left.set_title("The accuracy of a plain transformer …", fontsize=11)
    right.set_title("… in memory that does not grow", fontsize=11)
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main(
    depth=8,
    epochs=20,
    depths=(4, 8, 16, 32),
    batch=64,
    picture="reversible_transformer.png",
):
    """Train both, measure both, and return accuracies and bytes."""
    data, accuracy, memory = digits(), {}, {}
    for name in ("plain", "reversible"):
        torch.manual_seed(0)
        net = Transformer(depth, name == "reversible")
        accuracy[name] = train(net, data, epochs)
        memory[name] = {d: peak(name == "reversible", d, batch) for d in depths}
        parameters = sum(p.numel() for p in net.parameters())
        print(f"{name:10} {parameters} parameters, accuracy {accuracy[name][-1]:.1%}")
        for d, size in memory[name].items():
            print(f"{name:10} {d:3} blocks: {size / 1e6:6.2f} MB of activations")
    draw(accuracy, memory, picture)
    return accuracy, memory


if __name__ == "__main__":
    main()
