"""Draw the figures of the tutorials: `python -m benchmarks.tutorial_figures [NAME]`.

The code is that of the pages, so figures show what a reader gets, after more steps.
"""

import re
import sys
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from benchmarks.style import IMAGES, STYLE

TUTORIALS = IMAGES.parent / "tutorials"
STEPS = 600


def names_of(page: str, steps: int) -> dict[str, Any]:
    """Run the code of a page, with another number of training steps."""
    text = (TUTORIALS / f"{page}.md").read_text()
    code = "".join(
        re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    )
    found: dict[str, Any] = {}
    exec(re.sub(r"steps=\d+\):$", f"steps={steps}):", code, flags=re.MULTILINE), found)
    return found


def moons() -> None:
    """Draw the data, and the densities of both flows."""
    found = names_of("moons", STEPS)
    line = torch.linspace(-2.3, 2.3, 240)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(-1, 2)
    with mpl.rc_context(STYLE), torch.no_grad():
        figure = Figure(figsize=(7.5, 2.9), layout="constrained", dpi=130)
        axes = figure.subplots(1, 3, sharex=True, sharey=True)
        axes[0].scatter(*found["test"].T, s=2, color="#0b6e4f", lw=0)
        axes[0].set_title("data")
        for axis, (name, model) in zip(axes[1:], found["models"].items(), strict=True):
            density = model.log_prob(grid).exp().view(len(line), -1)
            axis.pcolormesh(
                line, line, density, cmap="Greens", vmax=0.6, rasterized=True
            )
            axis.scatter(*model.sample(300).T, s=2, color="#b3261e", lw=0)
            nats = found["nats"](model, found["test"])
            axis.set_title(f"{name} couplings, {nats:.2f} nats")
        for axis in axes:
            axis.set_aspect("equal")
            axis.set_xlim(-2.2, 2.2)
            axis.set_ylim(-1.6, 1.6)
        figure.savefig(IMAGES / "flow_on_moons.png")


def mri() -> None:
    """Draw a head, its k-space, the mask, and the zero-filled image with its error."""
    found = names_of("mri", steps=1)
    image, zero_filled = found["image"], found["zero_filled"]
    mask = found["mask"].expand(image.shape)
    pictures = {
        "magnitude": (image.abs(), "gray"),
        "phase": (image.angle() * (image.abs() > 0.05), "twilight"),
        "k-space (log)": (found["kspace"].abs().log1p(), "gray"),
        "measured columns": (mask, "gray"),
        "zero-filled": (zero_filled.abs(), "gray"),
        "error of it": ((zero_filled.abs() - image.abs()).abs(), "magma"),
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5.2), layout="constrained", dpi=130)
        for axis, (title, (picture, colors)) in zip(
            figure.subplots(2, 3).flat, pictures.items(), strict=True
        ):
            axis.imshow(picture, cmap=colors)
            axis.set_title(title)
            axis.axis("off")
        figure.savefig(IMAGES / "accelerated_mri.png")


FIGURES = {"moons": moons, "mri": mri}

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
