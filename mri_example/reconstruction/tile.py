"""Tiles, for volumes and images that do not fit in memory at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mri_example.errors import InputError
from mri_example.reconstruction.method import Method, method_name, tile_axes


@dataclass(frozen=True)
class Tile:
    """The most that a method is given at once; `None` is all there is.

    Tiles overlap by half, and their magnitudes are blended. The i-RIM and the RIM are
    told the scale of the whole image; the U-Net normalizes a tile by itself. Near the
    edges of a tile convolutions do not see what is beyond them: an image in tiles is
    not to the last digit the image as a whole. Edges that are multiples of the coarsest
    grid of the network keep it closest. See `tile_axes` for what can be cut.

    Args:
        rows: Rows (readout) of a tile.
        cols: Columns (phase encoding) of a tile, of methods that work on images alone.
        slices: Slices of a slab, of methods that take slabs; at most as many as the
            method takes.

    Raises:
        InputError: If one is not positive.

    Examples:
        >>> Tile(rows=160)
        Tile(rows=160, cols=None, slices=None)
    """

    rows: int | None = None
    cols: int | None = None
    slices: int | None = None

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size is not None and size < 1:
                raise InputError(
                    f"tile.{name} is {size}, but must be at least 1: leave it out not "
                    f"to cut {name}"
                )

    def check(self, method: Method) -> None:
        """Make sure that a method can be given such tiles.

        Raises:
            InputError: If it cannot.
        """
        allowed, name = tile_axes(method), method_name(method)
        for axis in ("rows", "cols"):
            size = getattr(self, axis)
            if size is not None and axis not in allowed:
                raise InputError(f"tile.{axis} is {size}, but {_reason(name, allowed)}")
        self._check_slices(getattr(method, "slab", None), name)

    def _check_slices(self, slab: int | None, name: str) -> None:
        if self.slices is None:
            return
        if slab is None:
            raise InputError(
                f"tile.slices is {self.slices}, but {name} is given slice after slice: "
                f"lower batch_size to have fewer of them at once"
            )
        if self.slices > slab:
            raise InputError(
                f"tile.slices is {self.slices}, but {name} takes slabs of {slab} "
                f"slices: choose at most that"
            )


WHOLE = Tile()


def _reason(name: str, allowed: tuple[str, ...]) -> str:
    if allowed:
        return (
            f"{name} compares images with k-space, to which all of their columns "
            f"belong: cut {' or '.join(allowed)} instead"
        )
    return (
        f"nothing is known of how the images of {name} can be cut: reconstruct whole "
        f"images, or say it in an attribute `tile_axes`"
    )
