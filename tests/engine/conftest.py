"""Anchors for tests that take `anchors`, and a compiler that remembers nothing."""

import pytest
import torch

from invtorch.engine import tape


@pytest.fixture(params=[0, 3, 8], ids=["inversion", "3 anchors", "8 anchors"])
def anchors(request) -> int:
    return request.param


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def frames(monkeypatch):
    """Count the calls that are found to be pure."""
    found: list[object] = []

    def watched(*call):
        frame = original(*call)
        found.append(frame)
        return frame

    original = tape.pure_frame
    monkeypatch.setattr(tape, "pure_frame", watched)
    return found
