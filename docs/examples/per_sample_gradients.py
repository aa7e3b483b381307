"""Compute the gradient of each sample of a batch, in two ways.

    python docs/examples/per_sample_gradients.py

1. `torch.func.vmap` of `torch.func.grad` returns them all. Under the transforms of
   `torch.func` a container is plain PyTorch: right, but all activations are kept.
2. If their norms are enough, as for differentially private training, hooks in the
   layers compute them during one ordinary backward pass, in the memory of one layer.
   A second backward pass with a weight for each sample then sums clipped gradients.

The norms also find wrong labels: a network that was trained on digits, of which some
have a wrong label, has large gradients where the label is wrong. Needs `scikit-learn`,
which contains the digits; about a minute on two cores.
"""

from contextlib import contextmanager

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, pad, unfold

from invtorch import InvertibleSequential, ReversibleBlock
from invtorch.planning import measure_memory

CHANNELS = 8


def network(blocks):
    """Return a reversible classifier of digits."""

    def convolutions():
        half = CHANNELS // 2
        first, second = (nn.Conv2d(*c, 3, padding=1) for c in ((half, 16), (16, half)))
        return nn.Sequential(first, nn.SiLU(), second)

    layers = [ReversibleBlock(convolutions(), convolutions()) for _ in range(blocks)]
    head = nn.Linear(CHANNELS * 64, 10)
    return nn.Sequential(InvertibleSequential(*layers), nn.Flatten(), head)


def state(images):
    """Return images as the state of the network: further channels are zero."""
    return pad(images, (0, 0, 0, 0, 0, CHANNELS - 1))


def with_vmap(net, x, labels):
    """Return the gradient of each sample, `(batch, *shape)` for each parameter."""

    def loss(parameters, x, label):
        return cross_entropy(functional_call(net, parameters, (x[None],)), label[None])

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)


def per_sample(layer, x, gradient):
    """Return the gradients of a layer's weight and bias for each sample.

    Args:
        layer: A convolution or linear map.
        x: Its input.
        gradient: The gradient of its output.
    """
    if isinstance(layer, nn.Conv2d):
        x = unfold(x, layer.kernel_size, padding=layer.padding)  # batch, taps, places
        gradient = gradient.flatten(2)
        return torch.einsum("bop,btp->bot", gradient, x), gradient.sum(2)
    return torch.einsum("bo,bi->boi", gradient, x), gradient


@contextmanager
def squared_norms(net, batch):
    """Add up the squared norm of each sample's gradient in a backward pass.

    A container evaluates each layer without a graph in the forward pass, and again in
    the backward pass. Only then does the output require a gradient.
    """
    norms = torch.zeros(batch)

    def watch(layer, inputs, output):
        x = inputs[0].detach()
        if output.requires_grad:
            output.register_hook(lambda gradient: add(layer, x, gradient))

    def add(layer, x, gradient):
        for g in per_sample(layer, x, gradient):
            norms.add_(g.square().flatten(1).sum(1))

    kinds = nn.Conv2d, nn.Linear
    layers = [module for module in net.modules() if isinstance(module, kinds)]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield norms
    finally:
        for hook in hooks:
            hook.remove()


def with_hooks(net, x, labels):
    """Return the norm of each sample's gradient."""
    with squared_norms(net, len(x)) as squared:
        cross_entropy(net(x), labels, reduction="sum").backward()
    net.zero_grad()
    return squared.sqrt()


def clipped_gradient(net, x, labels, limit):
    """Leave in `.grad` the sum of the gradients, each clipped to a norm."""
    weights = (limit / with_hooks(net, x, labels)).clamp(max=1)
    (weights * cross_entropy(net(x), labels, reduction="none")).sum().backward()


def mislabeled(fraction):
    """Return digits, labels of which some are wrong, and which these are."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(labels)
    wrong = torch.rand(len(labels)) < fraction
    others = (labels + torch.randint(1, 10, labels.shape)) % 10
    return state(images), torch.where(wrong, others, labels), wrong


def train(net, x, labels, epochs):
    """Train for some epochs."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(net(x[chosen]), labels[chosen]).backward()
            optimizer.step()


def peaks(blocks, x, labels):
    """Return the bytes of both ways at their peak, without those of the result."""
    net = network(blocks)
    parameters = 4 * sum(p.numel() for p in net.parameters())
    with_hooks(net, x, labels)
    vmapped = measure_memory(lambda: with_vmap(net, x, labels))
    hooked = measure_memory(lambda: with_hooks(net, x, labels))
    return vmapped.peak - vmapped.live, hooked.peak - parameters


def draw(norms, wrong, memory, picture):
    """Draw the norms of right and wrong labels, and memory against depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    edges = torch.logspace(-3, 2, 41).tolist()
    values = norms.clamp(min=1e-3)
    for name, chosen, color in (("right", ~wrong, "C0"), ("wrong", wrong, "C3")):
        count = int(chosen.sum())
        look = {
            "color": color,
            "alpha": 0.75,
            "label": f"{name} label ({count} digits)",
        }
        share = torch.full([count], 100 / count).tolist()
        left.hist(values[chosen].tolist(), edges, weights=share, **look)
    left.set(xscale="log", xlabel="norm of the gradient of a digit")
    left.set_ylabel("share of the digits with such a label (%)")
    left.set_title("Digits with a wrong label have large gradients", fontsize=11)
    for k, (name, style) in enumerate({"vmap(grad)": "C1s--", "hooks": "C0o-"}.items()):
        sizes = [pair[k] / 1e6 for pair in memory.values()]
        right.plot(memory.keys(), sizes, style, label=name)
    right.set(xlabel="blocks", ylabel="memory beside gradients (MB)")
    right.set_ylim(bottom=0)
    right.set_title("Memory of the norms of 64 digits", fontsize=11)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main(blocks=4, epochs=8, depths=(4, 8, 16, 32), picture="per_sample_gradients.png"):
    """Train, find wrong labels, measure; return what was found."""
    torch.manual_seed(0)
    x, labels, wrong = mislabeled(0.03)
    net = network(blocks)
    train(net, x, labels, epochs)
    all_gradients = with_vmap(net, x[:64], labels[:64])
    squared = sum(g.square().flatten(1).sum(1) for g in all_gradients.values())
    parts = zip(x.split(64), labels.split(64), strict=True)
    norms = torch.cat([with_hooks(net, *part) for part in parts])
    error = ((norms[:64] - squared.sqrt()).norm() / squared.sqrt().norm()).item()
    print(f"norms by hooks and by vmap differ by {error:.1e}, relatively")
    largest = norms.topk(int(wrong.sum())).indices
    found = wrong[largest].float().mean().item()
    print(f"{found:.0%} of the {len(largest)} largest gradients are of wrong labels")
    memory = {n: peaks(n, x[:64], labels[:64]) for n in depths}
    for depth, (vmapped, hooked) in memory.items():
        print(f"{depth:2} blocks: vmap {vmapped / 1e6:5.1f} MB", end="")
        print(f", hooks {hooked / 1e6:5.1f} MB")
    draw(norms, wrong, memory, picture)
    return error, found, memory


if __name__ == "__main__":
    main()
