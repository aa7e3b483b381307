"""Monotone splines of rational quadratic functions, with bounded slopes."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Bins(NamedTuple):
    r"""For each entry the bin that it is in.

    Attributes:
        x: The left end $x_k$.
        y: Its image $y_k$.
        width: The width $w$.
        height: The height $h$.
        slope: $s = h / w$.
        left: The derivative $d_k$ at the left end.
        right: The derivative $d_{k+1}$ at the right end.
    """

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    slope: Tensor
    left: Tensor
    right: Tensor

    @property
    def bend(self) -> Tensor:
        r"""Return $d_k + d_{k+1} - 2s$, which is 0 where the bin is straight."""
        return self.left + self.right - 2 * self.slope

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return images of entries of these bins, and their $\theta$."""
        theta = clamped((x - self.x) / self.width, 0, 1)
        rest = theta * (1 - theta)
        ratio = (self.slope * theta**2 + self.left * rest) / self._below(theta)
        return self.y + self.height * ratio, theta

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return preimages of entries of these bins, and their $\theta$.

        $\theta = 2c / (-b - \sqrt{b^2 - 4ac})$ solves the quadratic equation without
        cancellation.
        """
        rise = (y - self.y) / self.height  # squares of small heights would be 0
        a = self.slope - self.left + rise * self.bend
        b = self.left - rise * self.bend
        c = -self.slope * rise
        # it is positive but for rounding; the root of 0 has no derivative
        discriminant = (b.square() - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny)
        theta = clamped(2 * c / (-b - discriminant.sqrt()), 0, 1)
        return self.x + theta * self.width, theta

    def log_slope(self, theta: Tensor) -> Tensor:
        """Return the logarithms of the slopes of the splines."""
        above = (
            self.right * theta**2
            + 2 * self.slope * theta * (1 - theta)
            + self.left * (1 - theta) ** 2
        )
        return 2 * self.slope.log() + above.log() - 2 * self._below(theta).log()

    def _below(self, theta: Tensor) -> Tensor:
        return self.slope + self.bend * theta * (1 - theta)


class RationalQuadratic(NamedTuple):
    r"""A spline of the interval $[-B, B]$ onto itself, one for each entry.

    With $\theta = (x - x_k) / w$ in a bin,

    $$ y = y_k + h\,\frac{s \theta^2 + d_k \theta (1 - \theta)}
                          {s + (d_k + d_{k+1} - 2s)\,\theta (1 - \theta)}. $$

    Attributes:
        x: The knots, shape `(..., bins + 1)`.
        y: Their images.
        width: The widths of the bins, shape `(..., bins)`.
        height: Their heights.
        derivative: The derivatives at the knots.
    """

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    derivative: Tensor

    @classmethod
    def of(cls, raw: Tensor, bins: int, end: float, bound: float, least: float) -> Self:
        r"""Return the spline that raw parameters stand for; zeros are the identity.

        Widths are a softmax. Slopes $s$ and derivatives $d$ are between $1/b$ and $b$:
        $\sigma = e^{\beta \tanh(a/\beta)}$ with $\beta = \ln b$ for $d$, and with
        $\beta = \ln \sqrt b$ for weights $\sigma$ of the heights $h \propto w \sigma$.
        They are scaled such that $\sum h = 2B$, by a mean of the $\sigma$, so that
        $s$ stays between $1/b$ and $b$.

        Args:
            raw: `bins` widths, `bins` heights and derivatives, along the last axis:
                `bins - 1` inner ones, or `bins` of a circle.
            bins: The number of bins.
            end: The end $B$ of the interval.
            bound: The bound $b$.
            least: The least width of a bin, relative to the interval.
        """
        circular = raw.shape[-1] == 3 * bins
        widths, heights, inner = raw.split([bins, bins, raw.shape[-1] - 2 * bins], -1)
        beta = math.log(bound)
        # fractions of the interval: squares of its length may overflow
        width = least + (1 - least * bins) * _softmax(widths)
        height = width * _bounded(heights, beta / 2)
        height = 2 * end * (height / height.sum(-1, keepdim=True))
        width = 2 * end * width
        inner = _bounded(inner, beta)
        if circular:
            derivative = torch.cat([inner, inner[..., :1]], -1)
        else:
            derivative = F.pad(inner, (1, 1), value=1.0)
        return cls(_knots(width, end), _knots(height, end), width, height, derivative)

    def bins(self, entries: Tensor, direction: str) -> Bins:
        """Return the bins of entries of the interval, which are not differentiated.

        Args:
            entries: The entries.
            direction: "forward" if they are preimages, "inverse" if they are images.
        """
        inner = (self.x if direction == "forward" else self.y)[..., 1:-1]
        index = (entries.unsqueeze(-1) >= inner).sum(-1, keepdim=True)

        def at(values: Tensor, offset: int = 0) -> Tensor:
            return values.gather(-1, index + offset).squeeze(-1)

        width, height = at(self.width), at(self.height)
        ends = at(self.derivative), at(self.derivative, 1)
        return Bins(at(self.x), at(self.y), width, height, height / width, *ends)


def clamped(values: Tensor, least: float, most: float) -> Tensor:
    """Clamp values that rounding put beyond an interval, but not their gradients."""
    return values + (values.clamp(least, most) - values).detach()


def _softmax(raw: Tensor) -> Tensor:
    """Return a softmax over the bins; PyTorch's takes long for a few, strided ones."""
    powers = (raw - raw.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def _bounded(raw: Tensor, beta: float) -> Tensor:
    return (beta * torch.tanh(raw / beta)).exp()


def _knots(sizes: Tensor, end: float) -> Tensor:
    """Return the ends of intervals of these sizes, the outermost exactly."""
    inner = sizes.cumsum(-1)[..., :-1] - end
    return F.pad(F.pad(inner, (1, 0), value=-end), (0, 1), value=end)
