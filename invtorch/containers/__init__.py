"""Containers of invertible modules."""

from invtorch.containers.conjugation import Conjugation
from invtorch.containers.sequential import InvertibleSequential
from invtorch.containers.split_and_join import Join, Split
from invtorch.containers.without_context import WithoutContext

__all__ = ["Conjugation", "InvertibleSequential", "Join", "Split", "WithoutContext"]
