"""Networks from the literature, assembled from the layers of invtorch."""

from invtorch.nets.irim import IRIM

__all__ = ["IRIM"]
