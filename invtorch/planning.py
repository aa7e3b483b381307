"""Measure the memory of a training step, and show the plan of its memory.

`InvertibleSequential(..., memory="auto", budget=...)` makes a `Plan` when it first
receives an input of a shape; `net.plan` is the latest one.
"""

from invtorch.memory.measure import Memory, measure_memory
from invtorch.memory.plan import Plan
from invtorch.memory.report import MemoryReport, memory_report

__all__ = ["Memory", "MemoryReport", "Plan", "measure_memory", "memory_report"]
