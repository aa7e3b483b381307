"""Apply one module several times, with shared weights."""

from __future__ import annotations

from collections.abc import Sequence

from invtorch._checks import check_count
from invtorch.composite import Composite, Step
from invtorch.containers.sequential import invertible
from invtorch.module import InvertibleModule


class Repeat(Composite):
    r"""Apply a module several times, with the same weights.

    $$ y = (f \circ \cdots \circ f)(x; c) $$

    Each application is a layer of the container around; gradients of the weights add
    up.

    Args:
        module: The module $f$.
        times: How often it is applied.

    Shape:
        The input of `module`, whose output must be a valid input of it.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`, or `times` not an integer.
        ValueError: If `module` does not define its inverse, or `times` is less than 1.

    Examples:
        >>> layer = Repeat(Permute(3, [1, 2, 0]), 3)
        >>> x = torch.randn(2, 3)
        >>> torch.equal(layer(x), x)
        True
    """

    def __init__(self, module: InvertibleModule, times: int) -> None:
        super().__init__()
        check_count("times", times)
        self.module = invertible(module)
        self.times = times

    def chain(self) -> Sequence[Step]:
        """Apply the module `times` times."""
        return [Step(self.module)] * self.times

    def extra_repr(self) -> str:
        """Show how often."""
        return f"times={self.times}"
