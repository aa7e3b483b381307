"""Bytes are counted where they are asked for, told apart, and written."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from invtorch.memory.plan import amount
from invtorch.planning import Memory, measure_memory, memory_report
from tests.devices import ON_THE_CPU
from tests.unit.memory.test_plan import STATE, image, paper

pytestmark = ON_THE_CPU


def allocate(device: str = "cpu") -> torch.Tensor:
    torch.ones(512, device=device)  # freed at once
    return torch.ones(256, device=device)


def test_bytes_on_the_cpu_are_counted_where_there_is_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure_memory(allocate) == Memory(peak=2048, live=1024)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_bytes_on_a_gpu() -> None:
    on_gpu = measure_memory(lambda: allocate("cuda"), device="cuda")
    assert on_gpu == Memory(peak=2048, live=1024)


def test_other_devices_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="device is 'meta', but memory can be"):
        measure_memory(allocate, device="meta")


SCRIPT = """
import os
{user}
before = dict(os.environ)
import torch
from torch import nn
loaded = dict(os.environ)
from invtorch.planning import measure_memory
assert os.environ == loaded, "the import changed the environment"

def call():
    assert os.environ == loaded, "a measured call sees another environment"
    return torch.zeros(8)

for _ in range(2):
    measure_memory(call)
assert os.environ == loaded, "measuring changed the environment"
assert os.environ.get("KINETO_LOG_LEVEL") == before.get("KINETO_LOG_LEVEL")
"""


@pytest.mark.parametrize("user", ["", 'os.environ["KINETO_LOG_LEVEL"] = "98"'])
def test_the_environment_is_left_alone_and_nothing_is_printed(user) -> None:
    others = {k: v for k, v in os.environ.items() if k != "KINETO_LOG_LEVEL"}
    command = [sys.executable, "-W", "error", "-c", SCRIPT.format(user=user)]
    done = subprocess.run(command, env=others, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_report_tells_apart_what_a_step_takes() -> None:
    net, x = paper(anchors=0), image()
    net.memory = "invert"
    optimizer = torch.optim.Adam(net.parameters())
    net(x).sum().backward()
    optimizer.step()
    before = [p.grad for p in net.parameters()]
    found = memory_report(lambda: net(x).sum().backward(), net, optimizer)
    size = sum(p.nbytes for p in net.parameters())
    assert found.parameters == found.gradients == size
    assert 2 * size <= found.optimizer <= 2 * size + 4 * len(before)
    assert 5 * STATE < found.activations < 30 * STATE
    assert found.cache == 0
    assert all(p.grad is g for p, g in zip(net.parameters(), before, strict=True))
    assert str(found).splitlines()[-1].startswith("in all")


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop]
)
def test_an_optimizer_that_has_not_stepped(kind) -> None:
    net, x = paper(anchors=0), image()
    optimizer = kind(net.parameters(), lr=1.0)
    call, values = (
        lambda: net(x).sum().backward(),
        [p.clone() for p in net.parameters()],
    )
    before = memory_report(call, net, optimizer).optimizer
    assert not optimizer.state
    assert all(map(torch.equal, net.parameters(), values))
    call()
    optimizer.step()
    assert before == memory_report(call, net, optimizer).optimizer


def test_an_optimizer_that_needs_a_closure_to_step() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(net.parameters())
    with pytest.raises(
        ValueError, match=r"LBFGS without a state.*after its first step"
    ):
        memory_report(lambda: net(torch.ones(2)).sum().backward(), net, optimizer)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("call", {"call": "x"}),
        ("model", {"model": "x"}),
        ("optimizer", {"optimizer": 3}),
    ],
)
def test_other_arguments_are_named(name, changed) -> None:
    arguments = {"call": lambda: None, "model": nn.Linear(1, 1), "optimizer": None}
    with pytest.raises(TypeError, match=f"{name} is"):
        memory_report(**(arguments | changed))
    if name == "call":
        with pytest.raises(TypeError, match="call is 'x', but must be a function"):
            measure_memory("x")


def test_amounts_are_written_to_three_digits() -> None:
    counts = [0, 9, 999, 1000, 12_345, 999_499, 999_500, 10**6, 5 * 10**12, 10**16]
    assert [amount(count) for count in counts] == [
        *("0 B", "9 B", "999 B", "1 kB", "12.3 kB", "999 kB", "1 MB", "1 MB"),
        *("5 TB", "1e+04 TB"),
    ]


PLANNERS = """
import faulthandler, sys, threading
import torch
from torch import nn
from invtorch import AdditiveCoupling, InvertibleSequential

faulthandler.dump_traceback_later(240, exit=True)
barrier, found = threading.Barrier(4), []

def work():
    for size in range(3, 8):
        layers = [AdditiveCoupling(nn.Linear(2, 2), swap=i % 2 == 1) for i in range(4)]
        net = InvertibleSequential(*layers, memory="auto", budget=10**9)
        barrier.wait()
        net(torch.ones(size, 4)).sum().backward()
        found.append((size, net.plan.peak))

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 20, found
assert len(set(found)) == 5, found
"""


def test_threads_that_plan_at_the_same_time() -> None:
    """In a process of its own, which may crash."""
    command = [sys.executable, "-W", "error", "-c", PLANNERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_another_thread_allocates_is_not_counted() -> None:
    kept = []

    def call():
        thread = threading.Thread(target=lambda: kept.append(torch.ones(10**4)))
        thread.start()
        thread.join()
        return allocate()

    assert measure_memory(call) == Memory(peak=2048, live=1024)
    with torch.profiler.profile(profile_memory=True), ThreadPoolExecutor(1) as pool:
        found = pool.submit(measure_memory, allocate).result()
    assert found == Memory(peak=2048, live=1024)
