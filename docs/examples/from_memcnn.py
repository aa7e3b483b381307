"""Run a script that was written for memcnn, after changing one import.

    python docs/examples/from_memcnn.py

memcnn is not maintained any more. In a script that begins with

    import memcnn

that line becomes

    import invtorch.compat.memcnn as memcnn

and nothing else changes: names, arguments, parameters and the keys of the `state_dict`
are the same. Here one network is trained with each of the two, and both are tried out.
Where memcnn is not installed, only invtorch is. Needs `scikit-learn` for the digits;
about a minute on two cores.
"""

import importlib
import importlib.util

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from invtorch.planning import measure_memory

LIBRARIES = ("memcnn", "invtorch.compat.memcnn")


def network(memcnn, wrappers, **options):
    """Return a network as scripts for memcnn build it: wrappers in an nn.Sequential."""

    def convolutions():
        return nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        )

    layers = []
    for _ in range(wrappers):
        coupling = memcnn.AdditiveCoupling(Fm=convolutions(), Gm=convolutions())
        layers.append(memcnn.InvertibleModuleWrapper(coupling, **options))
    stem, head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 64, 10)
    return nn.Sequential(stem, *layers, nn.Flatten(), head)


def train(net, epochs, batch=64):
    """Train on digits, and return the loss of each step."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    labels, order = torch.tensor(labels), torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=2e-3), []
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order).split(batch)[:-1]:
            optimizer.zero_grad()
            loss = cross_entropy(net(x[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def peak(memcnn, wrappers, batch=64, **options):
    """Return the bytes of activations of a training step at its peak."""
    net, x = network(memcnn, wrappers, **options), torch.randn(batch, 1, 8, 8)
    net(x).sum().backward()  # gradients are allocated
    return measure_memory(lambda: net(x).sum().backward()).peak


class WrongInverse(nn.Module):
    """A square, with an inverse that is off by one percent."""

    def forward(self, x):
        """Return (x + x^2) / 2, for positive x."""
        return (x + x.square()) / 2

    def inverse(self, y):
        """Return a wrong root."""
        return 1.01 * ((2 * y + 0.25).sqrt() - 0.5)


def succeeds(call):
    """Return whether a call raises no error."""
    try:
        call()
    except RuntimeError:
        return False
    return True


def is_noticed(memcnn, wrong):
    """Return whether a module with a wrong inverse raises an error."""
    wrappers = [memcnn.InvertibleModuleWrapper(wrong) for _ in range(12)]
    x = torch.rand(2, 4).requires_grad_()
    return not succeeds(lambda: nn.Sequential(*wrappers)(1 + x).sum().backward())


def behavior(memcnn):
    """Return what works, by name."""

    def twice():
        loss = net(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()

    net, x = network(memcnn, 2), torch.randn(2, 1, 8, 8)
    parameters, state = list(net.parameters()), torch.randn(2, 16, 8, 8)
    net[1](state)
    return {
        "inputs are not freed": state.untyped_storage().size() > 0,
        "torch.autograd.grad": succeeds(
            lambda: torch.autograd.grad(net(x).sum(), parameters)
        ),
        "a second backward pass": succeeds(twice),
        "a wrong inverse raises": is_noticed(memcnn, WrongInverse()),
    }


def draw(losses, memory, works, picture):
    """Draw losses, memory, and a table of what works."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    styles = {"plain autograd": "C7^:", "memcnn": "C1s-", LIBRARIES[1]: "C0o--"}
    for name, values in losses.items():
        color, line = styles[name][:2], styles[name][3:]
        width = 4 if name == "memcnn" else 1.5
        panels[0].plot(values, line, color=color, linewidth=width, label=name)
    panels[0].set(xlabel="step", ylabel="training loss")
    panels[0].set_title("The same losses", fontsize=11)
    for name, sizes in memory.items():
        values = [b / 1e6 for b in sizes.values()]
        panels[1].plot(sizes.keys(), values, styles[name], label=name)
    panels[1].set(xlabel="chained wrappers", ylabel="activations (MB)")
    panels[1].set_title("Memory of a training step", fontsize=11)
    for axes in panels[:2]:
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].axis("off")
    rows = list(next(iter(works.values())))
    cells = [["yes" if works[n][row] else "no" for n in works] for row in rows]
    table = panels[2].table(
        cells,
        rowLabels=rows,
        colLabels=[name.removesuffix(".compat.memcnn") for name in works],
        bbox=[0.55, 0.25, 0.45, 0.6],
        cellLoc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    panels[2].set_title("What works", fontsize=11)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def main(wrappers=8, epochs=3, depths=(4, 16, 64), picture="from_memcnn.png"):
    """Train with each library, measure, and try them out; return what was found."""
    losses, memory, works, states = {}, {}, {}, {}
    for name in filter(importlib.util.find_spec, LIBRARIES):
        memcnn = importlib.import_module(name)
        torch.manual_seed(0)
        net = network(memcnn, wrappers)
        losses[name] = train(net, epochs)
        states[name] = net.state_dict()
        memory[name] = {n: peak(memcnn, n) for n in depths}
        works[name] = behavior(memcnn)
        print(f"{name}: loss {losses[name][0]:.4f} at first, {losses[name][-1]:.4f}")
        for what, result in works[name].items():
            print(f"    {what}: {'yes' if result else 'no'}")
    memory["plain autograd"] = {n: peak(memcnn, n, disable=True) for n in depths}
    for name, sizes in memory.items():
        shown = ", ".join(f"{n}: {b / 1e6:.2f} MB" for n, b in sizes.items())
        print(f"activations by number of wrappers, {name}: {shown}")
    draw(losses, memory, works, picture)
    return losses, memory, works, states


if __name__ == "__main__":
    main()
