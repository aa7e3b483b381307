"""Hypothesis profiles, the device, and the fixtures that tests share.

`make test DEVICE=cuda` lets the tests make their tensors on a GPU. `make thorough`
draws `EXAMPLES` examples for each law, and prints how many each has run.
"""

import gc
import os
import re
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings

from invtorch.engine.eager import tape
from tests import devices
from tests.strategies import CI_EXAMPLES

COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=3, **COMMON)
settings.register_profile("dev", max_examples=10, **COMMON)
# One commit gets one verdict; the other profiles draw new examples in every run.
settings.register_profile("ci", max_examples=CI_EXAMPLES, derandomize=True, **COMMON)
EXAMPLES = int(os.environ.get("EXAMPLES", "400"))
settings.register_profile("thorough", max_examples=EXAMPLES, **COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")
settings.load_profile(PROFILE)
devices.begin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Restore the environment variables: processes of later tests inherit them."""
    before = dict(os.environ)
    try:
        return (yield)
    finally:
        if before != os.environ:
            os.environ.clear()
            os.environ.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add to a report how many examples of a law have passed."""
    report = yield
    drawn = getattr(item, "hypothesis_statistics", "")
    if call.when == "call" and drawn:
        passed = sum(map(int, re.findall(r"(\d+) passing", drawn)))
        report.user_properties.append(("examples", passed))
    return report


def pytest_terminal_summary(terminalreporter):
    """Print how many examples each law has run, over all of its parameters."""
    counts = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "examples" and report.when == "call":
                counts[report.nodeid.partition("[")[0]] += value
    if PROFILE == "thorough" and counts:
        terminalreporter.section("examples of each law")
        for law, count in sorted(counts.items()):
            terminalreporter.line(f"{count:7} {law}")
        terminalreporter.line(f"{counts.total():7} in all")


@pytest.fixture
def on_the_cpu():
    """Make tensors on the CPU, where bytes are counted one by one."""
    with torch.device("cpu"):
        yield


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _collect_little():
    """Keep what is imported out of every `gc.collect()`, which else scans it all."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=[0, 3, 8], ids=["inversion", "3 anchors", "8 anchors"])
def anchors(request) -> int:
    return request.param


@pytest.fixture
def fresh_dynamo():
    """Compile from nothing, and leave nothing compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def recorded_calls(monkeypatch):
    """Collect the closed form that each recorded call has, or None."""
    calls: list[object] = []

    def recorded(*call):
        calls.append(original(*call))
        return calls[-1]

    original = tape.closed_form_call
    monkeypatch.setattr(tape, "closed_form_call", recorded)
    return calls
