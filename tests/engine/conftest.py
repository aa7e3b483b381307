"""A test that takes `anchors` runs with pure inversion and with anchors."""

import pytest


@pytest.fixture(params=[0, 3, 8], ids=["inversion", "3 anchors", "8 anchors"])
def anchors(request) -> int:
    return request.param
