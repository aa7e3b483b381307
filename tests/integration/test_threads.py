"""Threads that share a network, or a part of one."""

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn.utils import parametrize

from invtorch import AdditiveCoupling, InvertibleSequential, _torch
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner
from tests.stacks import both, mixed, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = ON_THE_CPU  # a default device is that of one thread


def test_training_threads_that_share_a_network(anchors) -> None:
    net = stack(anchors, dropout=0.0)
    inputs = [sample() for _ in range(4)]

    def gradients(x):
        return torch.autograd.grad(weighed(net(x)), parameters(net))

    net.memory = "store"
    expected = [gradients(x) for x in inputs]
    net.memory = "invert"
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            for found, reference in zip(
                pool.map(gradients, inputs), expected, strict=True
            ):
                assert_all_equal(found, reference)


def test_backward_in_another_thread(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    def gradients():
        loss = weighed(net(x))
        with ThreadPoolExecutor(1) as pool:
            inputs = [x, *parameters(net)]
            return pool.submit(torch.autograd.grad, loss, inputs).result()

    assert_all_equal(*both(net, gradients))


class Slow(nn.Linear):
    """A conditioner in which two threads meet."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.entered = threading.Event()

    def forward(self, x):
        self.entered.set()
        time.sleep(0.02)  # another thread may come now
        h = super().forward(x)
        time.sleep(0.02)
        return h


def test_threads_whose_layers_share_a_conditioner() -> None:
    conditioner, done = Slow(), threading.Event()
    conditioner.weight.register_hook(lambda g: None)  # a replay needs a stand-in
    one, two = (InvertibleSequential(AdditiveCoupling(conditioner)) for _ in range(2))
    x, found = torch.ones(3, 4), []
    loss = one(x).sum()
    conditioner.entered.clear()

    def first() -> None:
        try:
            loss.backward()
        finally:
            done.set()

    def other() -> None:
        conditioner.entered.wait(60)  # until the first replays
        loss = two(x).sum()
        done.wait(60)
        found.append(torch.autograd.grad(loss, conditioner.weight)[0])

    threads = [threading.Thread(target=first), threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], torch.full((2, 2), 3.0))


class Normalized(Conditioner):
    """A conditioner with running statistics."""

    def __init__(self):
        super().__init__(2, 2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x, *context):
        return self.norm(super().forward(x, *context))


@pytest.mark.parametrize("kind", ["hooks on parameters", "BatchNorm", "second order"])
def test_threads_share_a_net_whose_replay_needs_it_changed(kind) -> None:
    net = mixed(Normalized if kind == "BatchNorm" else lambda: Conditioner(2, 2), 0)
    if kind == "hooks on parameters":
        for parameter in net.parameters():
            parameter.register_hook(lambda g: 2 * g)
    inputs = [sample(requires_grad=True) for _ in range(4)]
    own = {id(t) for t in (*net.parameters(), *net.buffers())}
    weights = parameters(net)  # a thread that replays puts others in their place

    def call(x):
        wanted = [x, *weights]
        return grad(net(x).sin().sum(), wanted, create_graph=kind == "second order")

    net.memory = "store"
    expected = [call(x) for x in inputs]
    net.memory = "invert"
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(call, inputs * 4))
    finally:
        sys.setswitchinterval(before)
    for found, reference in zip(results, expected * 4, strict=True):
        assert_all_equal(found, reference)
    assert own == {id(t) for t in (*net.parameters(), *net.buffers())}
    if kind == "BatchNorm":
        counts = {int(m.num_batches_tracked) for m in net.modules() if is_norm(m)}
        assert counts == {4 + 16}


def is_norm(module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def test_a_garbage_collection_while_other_threads_compute() -> None:
    """PyTorch shows nodes to the collector by counts that other threads change.

    The collector may take a living node for garbage, find out before it frees it, and
    have cleared the weak references that only the node held.
    """
    net = InvertibleSequential(AdditiveCoupling(nn.Linear(2, 2)), guard=None)
    weights, x = parameters(net), torch.ones(64, 4)
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            gc.collect(0)
            time.sleep(0)

    def train(_) -> None:
        for _ in range(500):
            y = net(x)
            for _ in range(30):
                z = 2 * y
            grad(z.sum(), weights)

    with ThreadPoolExecutor(4) as pool:
        collector = pool.submit(collect)
        try:
            list(pool.map(train, range(3)))
        finally:
            done.set()
        collector.result()


class Meets(Conditioner):
    """A conditioner that waits while another thread does something."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.meet = lambda: None

    def forward(self, x, *context):
        y = super().forward(x, *context)
        self.meet()
        return y


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("order", ["enters", "leaves", "enters and leaves"])
def test_another_thread_enters_or_leaves_cached_parametrizations(own, order) -> None:
    net = InvertibleSequential(AdditiveCoupling(Meets())).double()
    part, x = net[0].conditioner, sample(requires_grad=True)
    nn.utils.parametrizations.weight_norm(part.first)
    other = parametrize.cached()
    with ThreadPoolExecutor(1) as pool:

        def step(name: str):
            return lambda: pool.submit(getattr(other, name), *EXITS[name]).result()

        if order == "leaves":
            step("__enter__")()
        parts = {"enters": "__enter__", "leaves": "__exit__"}
        steps = iter([step(parts[word]) for word in order.split(" and ")])
        part.meet = lambda: next(steps, lambda: None)()
        wanted = [x, *parameters(net)]
        with parametrize.cached() if own else nullcontext():
            found = torch.autograd.grad(weighed(net(x)), wanted)
            assert (_torch.parametrization_cache() > 0) == (own or order == "enters")
        if order == "enters":
            step("__exit__")()
    assert _torch.parametrization_cache() == 0
    net.memory, part.meet = "store", lambda: None
    assert_all_equal(found, torch.autograd.grad(weighed(net(x)), wanted))
    with torch.no_grad():  # a weight that was cached would be read
        part.first.parametrizations.weight.original0.add_(1)
    with parametrize.cached():
        fresh = part.first.weight.clone()
    assert torch.equal(fresh, part.first.weight)


EXITS = {"__enter__": (), "__exit__": (None, None, None)}

SHARED = """
import gc, random, threading, time
import torch
from torch import nn
from invtorch import AdditiveCoupling, InvertibleSequential

net = InvertibleSequential(AdditiveCoupling(nn.Linear(2, 2)))
weights, x = list(net.parameters()), torch.ones(3, 4)
done = threading.Event()
"""

ACCUMULATORS = """
def other():
    while not done.is_set():
        for weight in weights:
            weight.view(-1)
"""

GENERATOR = """
gc.callbacks.append(lambda *_: time.sleep(1e-4))
another = InvertibleSequential(AdditiveCoupling(nn.Linear(2, 2)))

def other():
    while not done.is_set():
        gc.set_threshold(random.randrange(1, 30))
        another(x)
"""

TOGETHER = """
thread = threading.Thread(target=other)
thread.start()
for _ in range(300):
    net(x)
done.set()
thread.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", [ACCUMULATORS, GENERATOR], ids=["gradient accumulators", "generators"]
)
def test_threads_do_not_deadlock_in_pytorch(program) -> None:
    """In a process of its own, which can be ended: the interpreter would hang."""
    command = [sys.executable, "-c", SHARED + program + TOGETHER]
    subprocess.run(command, check=True, timeout=600)  # of 3 seconds
