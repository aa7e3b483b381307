"""The residual block of the i-RIM paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import type_before_parametrizations

from invtorch._checks import check_count
from invtorch._repr import describe, parametrizations
from invtorch.conditioners.patches import (
    CONVOLUTIONS,
    GatherPatches,
    SpreadPatches,
    cropped,
    from_patches,
    padded,
)


class GatedResidualBlock(nn.Module):
    r"""A gated residual block: convolutions on a coarse grid, and a gated output.

    $$ G(x) = a \odot \sigma(b), \qquad (a, b) = W_3^\top *_s \operatorname{relu}\bigl(
       W_2 * \operatorname{relu}(W_1 *_s x)\bigr) $$

    $W_1$ maps each patch of `stride` positions to `hidden` channels at one position of
    the coarse grid, $W_2$ is a convolution on that grid, and $W_3$ maps each of its
    positions to a patch again, without a bias. All weights are weight-normalized. With
    the gate, training is stable without a special initialization.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels on the coarse grid.
        stride: Size of a patch, one number or one per axis.
        kernel_size: Kernel size of the convolution on the coarse grid, odd.
        dims: Number of spatial axes, 1 to 3.

    Shape:
        From `(batch, in_channels, *space)` to `(batch, out_channels, *space)`. If
        `stride` does not divide a size, the input is padded with zeros and the output
        is cropped.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, `dims` is not 1, 2 or 3, `kernel_size` is
            even, `stride` does not have one entry per axis, or an input has
            another number of axes.

    Examples:
        >>> block = GatedResidualBlock(2, 3, hidden=8, stride=(2, 4))
        >>> block(torch.randn(1, 2, 9, 15)).shape
        torch.Size([1, 3, 9, 15])

    References:
        Putzky and Welling, *Invert to learn to invert*, 2019, section 2.2.2.
        arXiv:1911.10914
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        stride: int | Sequence[int] = 1,
        kernel_size: int = 3,
        dims: int = 2,
    ) -> None:
        super().__init__()
        for name, count in {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "hidden": hidden,
            "kernel_size": kernel_size,
        }.items():
            check_count(name, count)
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, dims
        s = self.stride = _per_axis(stride, dims)
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size is {kernel_size}, but must be odd to be centered"
            )
        convolution, around = CONVOLUTIONS[dims], kernel_size // 2
        self.gather = weight_norm(GatherPatches(in_channels, hidden, s))
        self.look = weight_norm(
            convolution(hidden, hidden, kernel_size, padding=around)
        )
        self.spread = weight_norm(SpreadPatches(hidden, 2 * out_channels, s))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated output, of the spatial size of `x`."""
        if x.ndim != self.dims + 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but this {type(self).__name__} has "
                f"dims={self.dims}: give it (batch, channels, {self.dims} spatial "
                f"axes), or build it with other dims"
            )
        h = F.relu(self.gather(padded(x, self.stride)))
        h = F.relu(self.look(h))
        out = from_patches(F.glu(self.spread(h), dim=1), self.stride)
        return cropped(out, x.shape[2:])

    def __repr__(self) -> str:
        arguments = self._arguments()
        name = self._get_name()
        return describe(self) if arguments is None else f"{name}({arguments})"

    def _arguments(self) -> str | None:
        """Return the constructor arguments, or None if a submodule was replaced."""
        parts = self.gather, self.look, self.spread
        kinds = GatherPatches, CONVOLUTIONS[self.dims], SpreadPatches
        types = (*map(type_before_parametrizations, parts),)
        if types != kinds or [*self.children()] != [*parts]:
            return None
        hidden, size = self.look.in_channels, self.look.kernel_size[0]
        look = kinds[1](hidden, hidden, size, padding=size // 2, device="meta")
        made = [
            f"{self.in_channels}, {hidden}, patch={self.stride}",
            look.extra_repr(),
            f"{hidden}, {2 * self.out_channels}, patch={self.stride}",
        ]
        weight_facts = {", ".join(parametrizations(part)) for part in parts}
        if [part.extra_repr() for part in parts] != made or len(weight_facts) > 1:
            return None
        kernel_size = f", kernel_size={size}" if size != 3 else ""
        return (
            f"{self.in_channels}, {self.out_channels}, hidden={hidden}, "
            f"stride={self.stride}{kernel_size}, {weight_facts.pop()}"
        ).removesuffix(", ")


def _per_axis(stride: int | Sequence[int], dims: int) -> tuple[int, ...]:
    check_count("dims", dims)
    if dims not in CONVOLUTIONS:
        raise ValueError(f"dims is {dims}, but must be 1, 2 or 3")
    strides = tuple(stride) if isinstance(stride, Iterable) else (stride,) * dims
    for one in strides:
        check_count("stride", one)
    if len(strides) != dims:
        raise ValueError(f"stride is {stride}, but needs {dims} entries (dims)")
    return strides
