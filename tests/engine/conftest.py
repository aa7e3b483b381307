"""Anchors for tests that take `anchors`, and a compiler that remembers nothing."""

import pytest
import torch


@pytest.fixture(params=[0, 3, 8], ids=["inversion", "3 anchors", "8 anchors"])
def anchors(request) -> int:
    return request.param


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
