"""The U-Net, the baseline of the fastMRI challenge."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_example.models.base import Reconstructor, check_counts
from mri_example.transforms import root_sum_of_squares

EPS, LIMIT = 1e-11, 6.0  # of the normalization of a slice


class UNetwork(nn.Module):
    """Look at an image `(batch, 1, H, W)` on coarser and coarser grids, and come back.

    Sizes that `2 ** pools` does not divide are padded by reflection.
    """

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(pools + 1)]
        self.down = nn.ModuleList(
            _block(before, after)
            for before, after in zip([1, *widths], widths, strict=False)
        )
        self.rise = nn.ModuleList(_rise(2 * width, width) for width in widths[:-1])
        self.up = nn.ModuleList(_block(2 * width, width) for width in widths[:-1])
        self.last = nn.Conv2d(channels, 1, 1)
        self.coarsest = 2**pools

    def forward(self, x: Tensor) -> Tensor:
        """Return the output image."""
        height, width = x.shape[-2:]
        sides = [-n % self.coarsest for n in (width, height)]
        if min(height, width) < 2 * self.coarsest:
            raise ValueError(
                f"images are {height} by {width}, but this U-Net needs at least "
                f"{2 * self.coarsest} by {2 * self.coarsest}: build it with fewer pools"
            )
        h = F.pad(x, (0, sides[0], 0, sides[1]), mode="reflect")
        out: Tensor = self.last(self._level(h, 0))
        return out[..., :height, :width]

    def _level(self, x: Tensor, level: int) -> Tensor:
        across = self.down[level](x)
        if level == len(self.up):
            out: Tensor = across
            return out
        below = self._level(F.avg_pool2d(across, 2), level + 1)
        joined: Tensor = self.up[level](torch.cat([self.rise[level](below), across], 1))
        return joined


class UNet(Reconstructor):
    """Improve the magnitude image with a U-Net that knows nothing of k-space.

    The root-sum-of-squares of the zero-filled images is normalized to mean 0 and
    standard deviation 1, slice by slice, and bounded to plus or minus 6.

    Args:
        channels: Channels of the finest level.
        pools: Number of times the grid is halved.

    Shape:
        See `Reconstructor`; the reconstruction is one real image in complex numbers.

    Examples:
        >>> sum(p.numel() for p in UNet().parameters())
        7756097

    References:
        Ronneberger et al., *U-Net*, 2015. arXiv:1505.04597; Zbontar et al., *fastMRI:
        an open dataset and benchmarks for accelerated MRI*, 2018. arXiv:1811.08839
    """

    def __init__(self, channels: int = 32, pools: int = 4) -> None:
        super().__init__()
        check_counts(channels=channels, pools=pools)
        self.unet = UNetwork(channels, pools)

    def forward(self, zero_filled: Tensor, mask: Tensor) -> Tensor:
        """Return the reconstruction; the mask is not looked at."""
        del mask
        image = root_sum_of_squares(zero_filled, dim=1).unsqueeze(1)
        mean = image.mean(dim=(-2, -1), keepdim=True)
        deviation = image.std(dim=(-2, -1), keepdim=True) + EPS
        normalized = ((image - mean) / deviation).clamp(-LIMIT, LIMIT)
        out = deviation * self.unet(normalized) + mean
        return torch.complex(out, torch.zeros_like(out))


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*_normalized(before, after), *_normalized(after, after))


def _normalized(before: int, after: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return conv, nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)


def _rise(before: int, after: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(before, after, 2, stride=2, bias=False)
    return nn.Sequential(conv, nn.InstanceNorm2d(after), nn.LeakyReLU(0.2))
