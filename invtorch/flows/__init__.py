"""Normalizing flows: densities of data, made of an invertible network and a base."""

from invtorch.flows.adapters import (
    FromNflows,
    FromNormflows,
    FromTransform,
    FromZuko,
    ToNflows,
    ToNormflows,
    ToTransform,
    ToZuko,
)
from invtorch.flows.bases import Base, ConditionalNormal, DiagonalNormal, StandardNormal
from invtorch.flows.dequantize import Dequantize
from invtorch.flows.flow import Flow

__all__ = [
    "Base",
    "ConditionalNormal",
    "Dequantize",
    "DiagonalNormal",
    "Flow",
    "FromNflows",
    "FromNormflows",
    "FromTransform",
    "FromZuko",
    "StandardNormal",
    "ToNflows",
    "ToNormflows",
    "ToTransform",
    "ToZuko",
]
