"""Compositions of invertible modules."""

from invtorch.containers.conjugation import Conjugation
from invtorch.containers.context import WithoutContext
from invtorch.containers.sequential import InvertibleSequential

__all__ = ["Conjugation", "InvertibleSequential", "WithoutContext"]
