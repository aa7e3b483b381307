"""Space to depth: the positions of a block become channels."""

from __future__ import annotations

from torch import Tensor

from invtorch.resampling.blocks import Downsample


class PixelUnshuffle(Downsample):
    """Make channels of the positions of each block, without arithmetic.

    In two dimensions this is `torch.nn.PixelUnshuffle`, and the inverse is
    `torch.nn.PixelShuffle`. Each direction copies the state once.

    Args:
        stride: The sizes of a block: one for all axes, or one for each.
        dims: The number of spatial axes, 1 to 3 or more, if `stride` is one number.
        size: The spatial sizes of the input, where the strides do not divide them. The
            input is padded with zeros then, and the inverse crops them. It refuses to
            crop other values: what layers write there belongs to the state. So crop
            behind a network that upsamples, not in it. The map into the larger state
            preserves lengths and angles, and its log-determinant is 0.

    Shape:
        `(batch, channels, *space)`; the output is
        `(batch, channels * entries, *blocks)`, where a block has that many entries.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a stride or a size is less than 1, or the state does not fit.
        RuntimeError: If the inverse would crop a value that is not 0.

    Examples:
        >>> PixelUnshuffle(2)(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 12, 4, 4])
        >>> PixelUnshuffle((1, 2, 2))(torch.randn(1, 3, 5, 8, 8)).shape
        torch.Size([1, 12, 5, 4, 4])
    """

    def unchanged(self, mask: Tensor, direction: str) -> Tensor:
        """All entries, moved; padding is none of them."""
        if direction == "forward":
            return self.forward(mask)
        return self._cropped(self._unblocked(mask))

    def _matrix(self, state: Tensor) -> Tensor | None:
        del state
        return None
