"""Glow: a multi-scale normalizing flow of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invtorch import (
    ActNorm,
    AffineCoupling,
    Composite,
    InvertibleModule,
    InvertibleSequential,
    LU1x1,
    OnPart,
    PixelUnshuffle,
    Step,
)
from invtorch._checks import check_count, check_function
from invtorch.containers.sequential import MemoryArgument
from invtorch.engine import GuardPolicy
from invtorch.nets.set_aside import SetAside, on_first

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PRIOR_BOUND = 8.0  # of the standard deviations of a split prior, and of their inverses


class Glow(Composite):
    r"""A multi-scale flow whose latent variables have a learned prior.

    Each level makes channels of blocks of two positions along each axis, and applies
    `steps` times an `ActNorm`, an `LU1x1` and an `AffineCoupling`. Then the second half
    of its channels, $u$, becomes a latent variable; the first half, $h$, goes on to the
    next level. The prior of $u$ is learned (the split prior):

    $$ p(u \mid h) = \mathcal N\bigl(\mu(h), \sigma(h)^2\bigr), \qquad
       z = (u - \mu(h)) / \sigma(h) $$

    The layer that returns $z$ for $u$ is an affine coupling, and its log-determinant
    $-\sum \ln\sigma$ is part of that of the network. So all latent variables are
    standard normal: the density is an `invtorch.flows.Flow` with a `StandardNormal` of
    `latent_shapes` as base, and its temperature scales the deviations of the prior too.

    With a context $c$, all couplings and split priors depend on it. The whole network
    is one chain of the container: memory does not depend on the number of steps or
    levels.

    Args:
        channels: Number of channels of the data.
        levels: Number of levels.
        steps: Number of steps at each level.
        hidden: Channels inside of the default conditioners.
        dims: The number of spatial axes, 1 to 3.
        context_channels: Channels of the context of the default conditioners; 0 for a
            flow without context. The context is one tensor,
            `(batch, context_channels, *space)` of any size in space, which is averaged
            over the positions of each level; or `(batch, context_channels)`.
        conditioner: A function that takes numbers of channels, of the input and of the
            output, and returns a network for a coupling or a split prior. It is given
            the context as the flow is. By default three convolutions, with kernels of
            3, 1 and 3; the last one begins with zeros, so that each coupling begins as
            the identity.
        bound: Bound of the scales of the couplings, see `AffineCoupling`. The
            deviations of a split prior are between 1/8 and 8.
        memory: Memory strategy of the container.
        anchors: States that the container keeps exactly.
        guard: What the container does if rebuilt states drift. All three are described
            in `invtorch.InvertibleSequential`.

    Shape:
        `(batch, channels, *space)`, with sizes that are multiples of `2**levels`. The
        output is a tuple of `levels` latent variables, from the coarsest to the finest
        (`latent_shapes`), or one tensor if there is one level.

    Raises:
        TypeError: If a number is not an integer, or a conditioner not an `nn.Module`.
        ValueError: If a number is too small, or a state or a context does not fit.

    Examples:
        >>> from invtorch.flows import Flow, StandardNormal
        >>> from invtorch.nets import Glow
        >>> glow = Glow(3, levels=2, steps=4, hidden=8)
        >>> flow = Flow(glow, StandardNormal(glow.latent_shapes((8, 8))))
        >>> x = torch.randn(4, 3, 8, 8)
        >>> [tuple(z.shape) for z in flow.to_latent(x)]
        [(4, 24, 2, 2), (4, 6, 4, 4)]
        >>> (-flow.log_prob(x).mean()).backward()
        >>> flow.sample(2, temperature=0.7).shape
        torch.Size([2, 3, 8, 8])

    References:
        Kingma and Dhariwal, *Glow: Generative flow with invertible 1x1 convolutions*,
        2018. arXiv:1807.03039

        Dinh et al., *Density estimation using Real NVP*, 2016. arXiv:1605.08803
    """

    def __init__(
        self,
        channels: int,
        *,
        levels: int = 3,
        steps: int = 8,
        hidden: int = 64,
        dims: int = 2,
        context_channels: int = 0,
        conditioner: Callable[[int, int], nn.Module] | None = None,
        bound: float = 2.0,
        memory: MemoryArgument = "invert",
        anchors: int | Sequence[int] | str = 8,
        guard: GuardPolicy | None = "raise",
    ) -> None:
        super().__init__()
        counts = {"channels": channels, "levels": levels, "steps": steps}
        for name, count in (counts | {"hidden": hidden, "dims": dims}).items():
            check_count(name, count)
        check_count("context_channels", context_channels, least=0)
        if dims not in CONVOLUTIONS:
            raise ValueError(f"dims is {dims}, but must be 1, 2 or 3")
        self.channels, self.levels, self.steps = channels, levels, steps
        self.dims, self.context_channels = dims, context_channels

        def default(inputs: int, outputs: int) -> nn.Module:
            return GlowConditioner(
                inputs, outputs, hidden=hidden, dims=dims, context=context_channels
            )

        make, stride = conditioner or default, (2,) * dims
        check_function("conditioner", make)
        members: list[InvertibleModule] = [PixelUnshuffle(stride)]
        for level, c in enumerate(self._channels()):
            inner = [GlowStep(c, make, bound) for _ in range(steps)]
            if level == levels - 1:
                members += on_first(level, *inner)
            else:
                aside = SetAside((c // 2, c // 2), stride=(1,) * dims)
                prior = _coupling(c, make, PRIOR_BOUND)
                members += on_first(level, *inner, prior)
                members += [aside, OnPart(PixelUnshuffle(stride), 0)]
        self.layers = InvertibleSequential(
            *members, memory=memory, anchors=anchors, guard=guard
        )

    def chain(self) -> Sequence[Step]:
        """Run all levels."""
        return [Step(self.layers)]

    def latent_shapes(self, space: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shapes of the latent variables, without the batch axis.

        With one level it is one shape, as the latent variable is then one tensor.

        Args:
            space: The sizes of the data in space.

        Raises:
            TypeError: If they are no sequence of whole numbers.
            ValueError: If they are no multiples of `2**levels`, or too many.
        """
        factor = 2**self.levels
        if not isinstance(space, Iterable):
            raise TypeError(
                f"space is {space!r}, but must be a sequence of {self.dims} sizes"
            )
        space = tuple(space)
        for n in space:
            check_count("space", n)
        if len(space) != self.dims or any(n % factor for n in space):
            raise ValueError(
                f"space is {space}, but {self.levels} levels need {self.dims} "
                f"sizes that are multiples of {factor}: crop or pad the data"
            )
        shapes = []
        for level, c in enumerate(self._channels()):
            last = level == self.levels - 1
            size = [n // 2 ** (level + 1) for n in space]
            shapes.append((c if last else c // 2, *size))
        return shapes[::-1] if self.levels > 1 else shapes[0]  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """Show the channels of each level."""
        context = f", context_channels={self.context_channels}"
        lines = [f"dims={self.dims}{context if self.context_channels else ''}"]
        for level, c in enumerate(self._channels()):
            text = f"level {level}: {c} channels at 1/{2 ** (level + 1)} of the size"
            out = c if level == self.levels - 1 else c // 2
            lines.append(f"{text}, {self.steps} steps, {out} latent")
        return "\n".join(lines)

    def _channels(self) -> list[int]:
        """Return the number of channels at each level."""
        entries = 2**self.dims
        # half of the channels of each level but the last are latent variables
        return [
            self.channels * entries * (entries // 2) ** level
            for level in range(self.levels)
        ]


class GlowStep(Composite):
    r"""One step of Glow: normalize, mix the channels, couple them.

    Args:
        channels: Number of channels.
        conditioner: A function that takes numbers of channels, of the input and of the
            output, and returns a network.
        bound: Bound of the scale of the coupling, see `AffineCoupling`.

    Shape:
        `(batch, channels, *space)`; the output has the same shape.

    Examples:
        >>> from invtorch.nets.glow import GlowStep
        >>> step = GlowStep(4, nn.Linear, bound=2.0)
        >>> step(torch.randn(8, 4)).shape
        torch.Size([8, 4])
    """

    def __init__(
        self, channels: int, conditioner: Callable[[int, int], nn.Module], bound: float
    ) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mix = LU1x1(channels)
        self.coupling = _coupling(channels, conditioner, bound)

    def chain(self) -> Sequence[Step]:
        """Normalize, mix, couple."""
        return [Step(self.norm), Step(self.mix), Step(self.coupling)]


class GlowConditioner(nn.Module):
    """Three convolutions, with kernels of 3, 1 and 3; the last begins with zeros.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels in between.
        dims: Number of spatial axes, 1 to 3.
        context: Channels of the context, or 0.

    Shape:
        From `(batch, in_channels, *space)` to `(batch, out_channels, *space)`. The
        context is averaged over the positions, whatever its size in space is.

    Raises:
        ValueError: If a context is missing, or not of that many channels, or not
            expected.

    Examples:
        >>> from invtorch.nets.glow import GlowConditioner
        >>> network = GlowConditioner(2, 4, hidden=8, dims=2, context=1)
        >>> network(torch.randn(1, 2, 4, 4), torch.randn(1, 1, 16, 16)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        dims: int,
        context: int,
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.in_channels, self.out_channels = in_channels, out_channels
        self.context_channels = context
        self.first = conv(in_channels + context, hidden, 3, padding=1)
        self.second = conv(hidden, hidden, 1)
        self.last = conv(hidden, out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the output, of the spatial size of `x`."""
        if self.context_channels:
            x = torch.cat([x, self._on_grid(context, x)], 1)
        elif context is not None:
            raise ValueError(
                "a context was given, but context_channels is 0: build the Glow with "
                "the number of channels of its context"
            )
        out: Tensor = self.last(F.relu(self.second(F.relu(self.first(x)))))
        return out

    def _on_grid(self, context: Tensor | None, x: Tensor) -> Tensor:
        """Average a context over the positions of `x`."""
        axes, expected = x.ndim - 2, (len(x), self.context_channels)
        shape = () if context is None else tuple(context.shape)
        if context is None or shape[:2] != expected or len(shape) not in (2, axes + 2):
            raise ValueError(
                f"the context has shape {shape}, but context_channels is "
                f"{expected[1]}: give {expected}, with or without {axes} axes of space"
            )
        if context.ndim == 2:
            context = context.unflatten(1, (-1, *(1,) * axes))
        return F.interpolate(context.to(x.dtype), x.shape[2:], mode="area")


def _coupling(
    channels: int, conditioner: Callable[[int, int], nn.Module], bound: float
) -> InvertibleModule:
    """Return a coupling of the first half of the channels, rounded down, and the rest.

    In front of a split it is the split prior: it standardizes the half that leaves.
    """
    sizes = channels // 2, channels - channels // 2
    network = conditioner(sizes[0], 2 * sizes[1])
    return AffineCoupling(network, split=sizes, bound=bound)
