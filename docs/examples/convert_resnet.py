"""Train a ResNet, convert its blocks to reversible ones, and fine-tune it.

    python docs/examples/convert_resnet.py

The network is an ordinary one, with the names and the blocks of torchvision's: a ReLU
after the sum, batch normalization, and a block with a stride at the start of a stage.
`invtorch.convert.reversible` runs its blocks as momentum steps with the same
parameters. That changes the function, the more the larger gamma is; a little training
repairs it. Needs `scikit-learn`, which contains the digits; about two minutes on two
cores.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, relu

from invtorch.convert import reversible
from invtorch.planning import measure_memory

STAGES, GAMMAS, PICTURE = ("layer1", "layer2"), (0.1, 0.5, 0.9), "convert_resnet.png"


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, as in torchvision."""

    def __init__(self, before, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride > 1:
            conv = nn.Conv2d(before, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        """Return relu(x + f(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return relu(shortcut + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """Two stages of blocks: 16 channels of 8 x 8, then 32 channels of 4 x 4."""

    def __init__(self, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16) for _ in range(blocks)])
        first = BasicBlock(16, 32, stride=2)
        rest = [BasicBlock(32, 32) for _ in range(blocks - 1)]
        self.layer2 = nn.Sequential(first, *rest)
        self.fc = nn.Linear(32, 10)

    def forward(self, images):
        """Return the scores of the ten classes."""
        x = self.layer2(self.layer1(self.stem(images)))
        return self.fc(x.mean((2, 3)))

    def stem(self, images):
        """Return the input of the first stage."""
        return relu(self.bn1(self.conv1(images)))


def digits():
    """Return images and labels, to train with and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(labels)[order]
    return images[:1347], labels[:1347], images[1347:], labels[1347:]


def train(net, data, epochs, rate):
    """Train for some epochs."""
    x, labels = data[:2]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(net(x[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()


def accuracy(net, data):
    """Return the accuracy on the test digits."""
    net.eval()
    with torch.no_grad():
        return (net(data[2]).argmax(1) == data[3]).float().mean().item()


def peak(blocks, convert, batch=64):
    """Return the bytes of activations of a training step at its peak."""
    net, x = ResNet(blocks), torch.randn(batch, 1, 8, 8)
    if convert:
        for stage in STAGES:
            reversible(net, stage)
    net(x).sum().backward()  # gradients are allocated
    return measure_memory(lambda: net(x).sum().backward()).peak


def convert_and_tune(trained, data, gamma, epochs):
    """Convert a copy; return the accuracies before and after fine-tuning."""
    net = copy.deepcopy(trained)
    x = net.eval().stem(data[0][:64]).detach()
    for stage in STAGES:  # each is replaced in the model
        converted = reversible(net, stage, gamma=gamma)
        report = converted.report(x)
        print(f"gamma={gamma} {stage}: {report}")
        x = converted(x).detach()
    before = accuracy(net, data)
    train(net, data, epochs, rate=1e-3)
    after = accuracy(net, data)
    assert net.state_dict().keys() == trained.state_dict().keys()
    return before, after


def draw(original, accuracies, memory, picture):
    """Draw the accuracies for each gamma, and memory against depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for k, (when, color) in enumerate({"converted": "C7", "fine-tuned": "C0"}.items()):
        heights = [100 * pair[k] for pair in accuracies.values()]
        places = [i + (k - 0.5) * 0.38 for i in range(len(accuracies))]
        bars = left.bar(places, heights, 0.36, color=color, label=when)
        left.bar_label(bars, fmt="%.1f", fontsize=9)
    label = f"trained ResNet: {100 * original:.1f} %"
    left.axhline(100 * original, color="C1", linestyle="--", label=label)
    left.set_xticks(range(len(accuracies)), [f"γ = {g}" for g in accuracies])
    left.set(ylim=(0, 142), yticks=range(0, 101, 20))
    left.set_ylabel("accuracy on test digits (%)")
    left.set_title("Fine-tuning brings the accuracy back …", fontsize=11)
    for name, style in {"ResNet": "C1s--", "converted": "C0o-"}.items():
        values = [b / 1e6 for b in memory[name].values()]
        right.plot(memory[name].keys(), values, style, label=name)
    right.set(xlabel="blocks", ylabel="activations of a training step (MB)")
    right.set_ylim(bottom=0)
    right.set_title("… in memory that does not grow", fontsize=11)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main(
    blocks=4, epochs=6, tuning=3, gammas=GAMMAS, depths=(4, 8, 16, 32), picture=PICTURE
):
    """Train, convert, fine-tune; return accuracies and bytes."""
    torch.manual_seed(0)
    data, net = digits(), ResNet(blocks)
    train(net, data, epochs, rate=3e-3)
    original = accuracy(net, data)
    print(f"trained ResNet of {2 * blocks} blocks: accuracy {original:.1%}")
    accuracies = {g: convert_and_tune(net, data, g, tuning) for g in gammas}
    for gamma, (before, after) in accuracies.items():
        print(f"gamma={gamma}: converted {before:.1%}, fine-tuned {after:.1%}")
    memory = {}
    for name in ("ResNet", "converted"):
        memory[name] = {2 * d: peak(d, name == "converted") for d in depths}
        for depth, size in memory[name].items():
            print(f"{name:9} {depth:2} blocks: {size / 1e6:5.1f} MB of activations")
    draw(original, accuracies, memory, picture)
    return original, accuracies, memory


if __name__ == "__main__":
    main()
