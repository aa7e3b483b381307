"""Containers of invertible modules."""

from invtorch.containers.conjugation import Conjugation
from invtorch.containers.on_part import OnPart, Parallel
from invtorch.containers.repeat import Repeat
from invtorch.containers.sequential import InvertibleSequential
from invtorch.containers.split_and_join import Join, Split
from invtorch.containers.without_context import WithoutContext

__all__ = [
    "Conjugation",
    "InvertibleSequential",
    "Join",
    "OnPart",
    "Parallel",
    "Repeat",
    "Split",
    "WithoutContext",
]
