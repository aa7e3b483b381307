"""Assertions for invertible modules that you write.

Each compares a module with plain PyTorch and says what is wrong, and by how much. They
need no test framework. `invtorch.testing.strategies` draws inputs with hypothesis.
"""

from invtorch.testing.assertions import (
    assert_gradients_match,
    assert_invertible,
    assert_log_det,
    assert_memory_flat,
)
from invtorch.testing.situations import assert_right_or_raises

__all__ = [
    "assert_gradients_match",
    "assert_invertible",
    "assert_log_det",
    "assert_memory_flat",
    "assert_right_or_raises",
]
