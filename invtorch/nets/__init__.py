"""Networks from the literature, built from the layers of invtorch."""

from invtorch.nets.irim import IRIM

__all__ = ["IRIM"]
