"""Train a deep reversible network with Lightning, in one file: denoising of faces.

    python docs/examples/lightning_denoising.py

The container is an ordinary module: the Trainer needs no option for it, and gradient
clipping, accumulation, checkpoints and several devices work as for any other network.
Needs `lightning`, and `scikit-image` for the faces; about two minutes on two cores.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning
import matplotlib.pyplot as plt
import skimage.data
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from invtorch import InvertibleSequential, ReversibleBlock
from invtorch.planning import measure_memory

CHANNELS, NOISE, PICTURE = 16, 0.1, "lightning_denoising.png"


class Denoiser(lightning.LightningModule):
    """Remove noise by a chain of reversible blocks.

    Args:
        blocks: Their number.
        memory: `"invert"`, or `"store"` for plain autograd.
        rate: The learning rate at the beginning.
    """

    def __init__(self, blocks=16, memory="invert", rate=2e-3):
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate

        def convolutions():
            half = CHANNELS // 2
            return nn.Sequential(
                nn.Conv2d(half, half, 3, padding=1),
                nn.GroupNorm(1, half),
                nn.SiLU(),
                nn.Conv2d(half, half, 3, padding=1),
            )

        def block():
            return ReversibleBlock(convolutions(), convolutions())

        self.into = nn.Conv2d(1, CHANNELS, 3, padding=1)
        layers = [block() for _ in range(blocks)]
        self.chain = InvertibleSequential(*layers, memory=memory)
        self.out = nn.Conv2d(CHANNELS, 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, noisy):
        """Return the denoised images."""
        return noisy - self.out(self.chain(self.into(noisy)))

    def training_step(self, images, _):
        """Return the error for images with new noise."""
        images = torch.where(torch.rand(()) < 0.5, images, images.flip(-1))
        noisy = images + NOISE * torch.randn_like(images)
        return (self(noisy) - images).square().mean()

    def validation_step(self, batch, _):
        """Log the peak signal-to-noise ratio."""
        noisy, images = batch
        self.log("psnr", psnr(self(noisy), images), prog_bar=True)

    def configure_optimizers(self):
        """Return Adam, whose rate falls along a cosine."""
        optimizer, epochs = Adam(self.parameters(), self.rate), self.trainer.max_epochs
        return [optimizer], [CosineAnnealingLR(optimizer, epochs)]


def psnr(images, others):
    """Return the peak signal-to-noise ratio in dB."""
    return -10 * math.log10((images - others).square().mean().item())


def faces():
    """Return images to train with; and noisy and clean ones to validate with."""
    images = torch.from_numpy(skimage.data.lfw_subset()[:100]).float()[:, None]
    train, clean = images[:80], images[80:]
    generator = torch.Generator().manual_seed(0)
    noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
    return train, list(zip(noisy, clean, strict=True))


def peak(blocks, memory, images):
    """Return the bytes of activations of a training step at its peak."""
    net = Denoiser(blocks, memory)
    net.training_step(images, 0).backward()  # gradients are allocated
    return measure_memory(lambda: net.training_step(images, 0).backward()).peak


def draw(noisy, denoised, clean, memory, picture):
    """Draw some faces, and memory against depth."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=[1.5, 1]
    )
    rows = [torch.cat([*images[:6, 0]], 1) for images in (noisy, denoised, clean)]
    left.imshow(torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=1)
    errors = psnr(noisy, clean), psnr(denoised, clean)
    names = f"noisy\n{errors[0]:.1f} dB", f"denoised\n{errors[1]:.1f} dB", "clean"
    figure.get_layout_engine().set(wspace=0.06)
    size = noisy.shape[-1]
    left.set_yticks([size * (k + 0.5) for k in range(3)], names)
    left.set_xticks([])
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set_title("Faces that were not trained with", fontsize=11)
    for name, style in {"store": "C1s--", "invert": "C0o-"}.items():
        sizes = [b / 1e6 for b in memory[name].values()]
        right.plot(memory[name].keys(), sizes, style, label=f"memory={name!r}")
    right.set(xlabel="blocks", ylabel="activations of a training step (MB)")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def main(blocks=12, epochs=80, depths=(8, 16, 32, 64), picture=PICTURE):
    """Train, load the best checkpoint, measure; return what was found."""
    lightning.seed_everything(0, verbose=False)
    train, validation = faces()
    with TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="psnr", mode="max")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            gradient_clip_val=1.0,
            callbacks=[best],
            accelerator="auto",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(
            Denoiser(blocks),
            DataLoader(train, batch_size=16, shuffle=True),
            DataLoader(validation, batch_size=20),
        )
        net = Denoiser.load_from_checkpoint(Path(best.best_model_path))
    net = net.cpu().eval()
    noisy, clean = (torch.stack(part) for part in zip(*validation, strict=True))
    with torch.no_grad():
        denoised = net(noisy)
    quality = {
        "noisy": psnr(noisy, clean),
        "checkpoint": best.best_model_score.item(),
        "denoised": psnr(denoised, clean),
    }
    for name, value in quality.items():
        print(f"{name:10} {value:.2f} dB")
    memory = {}
    for name in ("store", "invert"):
        memory[name] = {n: peak(n, name, train[:16]) for n in depths}
        for depth, size in memory[name].items():
            print(f"memory={name!r:8} {depth:2} blocks: {size / 1e6:5.1f} MB")
    draw(noisy, denoised, clean, memory, picture)
    return quality, memory


if __name__ == "__main__":
    main()
