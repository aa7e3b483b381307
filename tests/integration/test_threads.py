"""Threads that share a network, or a part of one."""

import _thread
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn.utils import parametrize

from invtorch import AdditiveCoupling, InvertibleSequential, _torch
from invtorch._torch import RUN_BACKWARD
from invtorch.engine.restore.locks import Lock, waits
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


def in_threads(*functions) -> list:
    """Call functions at the same time, each in a thread, and return their results."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [f.result(60) for f in [pool.submit(f) for f in functions]]


def or_abort(barrier, function, *arguments) -> None:
    """Call a function; if it fails, others need not wait for this thread."""
    try:
        function(*arguments)
    except BaseException:
        barrier.abort()
        raise


@pytest.mark.parametrize("shared", [False, True])
def test_threads_that_train_nets_with_dropout(anchors, shared) -> None:
    """Each step is right by the mask that it drew: the outputs tell which."""
    barrier = threading.Barrier(2)

    def train(net) -> None:
        x = sample(requires_grad=True)
        part = next(m for m in net.modules() if isinstance(m, nn.Dropout))
        for _ in range(8):
            thread, masks = threading.get_ident(), []

            def keep(_, given, kept, thread=thread, masks=masks) -> None:
                if threading.get_ident() == thread:
                    masks.append(kept[0] != 0)

            barrier.wait(60)
            hook = part.register_forward_hook(keep)
            barrier.wait(60)
            net(x).sum().backward()
            barrier.wait(60)
            hook.remove()
            assert len(masks) >= 2
            assert all(torch.equal(mask, masks[0]) for mask in masks)

    nets = [stack(anchors, dropout=0.5) for _ in range(2)]
    nets = [nets[0]] * 2 if shared else nets
    in_threads(*[functools.partial(or_abort, barrier, train, net) for net in nets])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_background_thread_draws_no_number_twice(anchors, dropout) -> None:
    """It draws inside of every evaluation of every layer."""
    torch.manual_seed(0)
    expected = [float(torch.rand(())) for _ in range(10_000)]
    net, x = mixed(Meets, anchors), sample(requires_grad=True)
    net.append(AdditiveCoupling(Conditioner(2, 2, dropout=dropout)).double())
    found: list[float] = []
    torch.manual_seed(0)
    with ThreadPoolExecutor(1) as pool:

        def draw() -> None:
            pool.submit(lambda: found.append(float(torch.rand(())))).result(60)

        for module in net.modules():
            if isinstance(module, Meets):
                module.meet = draw
        for _ in range(2):
            weighed(net(x)).backward()
    assert len(found) > len(net)
    if dropout:
        assert len({*found}) == len(found)
    else:
        assert found == expected[: len(found)]


@pytest.mark.parametrize(
    ("inner_memory", "dropout"),
    [("store", 0.0), ("invert", 0.0), ("invert", 0.5), ("checkpoint", 0.5)],
)
@pytest.mark.parametrize("backward", [False, True])
def test_a_conditioner_that_evaluates_a_container_in_another_thread(
    anchors, inner_memory, dropout, backward
) -> None:
    """It waits for the thread: to hold the locks meanwhile would be a deadlock."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [AdditiveCoupling(Conditioner(1, 1, dropout=dropout))] * 2
            self.inner = InvertibleSequential(*layers, memory=inner_memory)

        def forward(self, x):
            return pool.submit(self.evaluate, x, torch.is_grad_enabled()).result(60)

        def evaluate(self, x, enabled):
            with torch.set_grad_enabled(enabled):
                if not backward:
                    return self.inner(x)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.inner(leaf).sum(), leaf)
            with torch.set_grad_enabled(enabled):
                return self.inner(x) + slope

    with ThreadPoolExecutor(1) as pool:
        layers = [AdditiveCoupling(Outer()) for _ in range(2)]
        net = InvertibleSequential(*layers, anchors=anchors).double()
        x = sample(requires_grad=True)
        wanted = [x, *parameters(net)]

        def gradients():
            torch.manual_seed(3)
            return torch.autograd.grad(weighed(net(x)), wanted)

        assert_all_equal(*both(net, gradients))


def test_a_lock_is_lent_only_while_its_owner_waits() -> None:
    lock, order, computing = Lock(), [], threading.Event()
    inside = threading.Event()

    def owner() -> None:
        with lock:
            inside.set()
            while not computing.is_set():  # it computes, and waits for nobody
                order.append("computes")
            order.append("leaves")

    def other() -> None:
        inside.wait(60)
        threading.Timer(0.05, computing.set).start()
        with lock:
            order.append("enters")

    in_threads(owner, other)
    assert order[-2:] == ["leaves", "enters"]


@pytest.mark.parametrize("changed", [False, True])
def test_a_lock_is_not_lent_where_modules_were_exchanged(changed) -> None:
    lock, entered = Lock(), []

    def enter() -> None:
        with lock:
            entered.append(lock.owner)

    with ThreadPoolExecutor(1) as pool, lock:
        lock.changed = changed
        lent = pytest.raises(RuntimeError, match="evaluate it in one thread")
        with lent if changed else nullcontext():
            pool.submit(enter).result(60)
        assert lock.count == 1
    assert lock.owner is None
    assert len(entered) == (not changed)


def test_threads_that_wait_for_the_locks_of_each_other() -> None:
    """Two locks in opposite order: one of the threads is lent what it waits for."""
    one, two, barrier = Lock(), Lock(), threading.Barrier(2)

    def run(first: Lock, second: Lock) -> None:
        with first:
            barrier.wait(60)
            with second:
                pass

    in_threads(lambda: run(one, two), lambda: run(two, one))
    assert one.owner is two.owner is None


def test_the_engine_of_autograd_is_waited_for_by_its_own_threads_only() -> None:
    """As a thread of a GPU would see it, which runs a part of a backward pass."""
    (file, function), *_ = RUN_BACKWARD
    seen = []

    class Sees(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(waits(file, function))
            return grad

    def backward(done: threading.Event) -> None:
        x = torch.ones(2, requires_grad=True)
        Sees.apply(x).sum().backward()
        done.set()

    for start in (lambda f: threading.Thread(target=f).start(), started_elsewhere):
        done = threading.Event()
        start(functools.partial(backward, done))
        assert done.wait(60)
    assert seen == [False, True]
    assert not waits(file, function)


def started_elsewhere(function) -> None:
    """Start a thread of which `threading` has no object, as C++ does."""
    _thread.start_new_thread(function, ())


def in_a_fork(function) -> int:
    """Return the exit code of a forked process that calls a function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        process = os.fork()
    if not process:
        try:
            os._exit(function())
        finally:
            os._exit(99)
    for _ in range(6000):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1


def code_of_gradients(net, x) -> int:
    """Return 0 if gradients are those of plain autograd, 2 if a lock was lost."""
    try:
        found = grad(weighed(net(x)), parameters(net))
    except RuntimeError as error:
        return 2 if "forked" in str(error) else 1
    net.memory = "store"
    expected = grad(weighed(net(x)), parameters(net))
    return not all(map(torch.allclose, found, expected))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("place", ["first call", "forward", "replay"])
def test_a_process_that_is_forked_while_a_thread_holds_locks(place, changed) -> None:
    """As one that loads data does, which may evaluate a network itself."""
    net, x = mixed(Meets, 0), sample(requires_grad=True)
    if place != "first call":
        weighed(net(x)).backward()
    hook = net[0].conditioner.first.weight.register_hook(lambda g: g)
    if not changed:  # else a replay exchanges the weight
        hook.remove()
    inside, go, waiting = threading.Event(), threading.Event(), [False]

    def meet() -> None:
        if waiting[0]:
            inside.set()
            assert go.wait(60)

    net[0].conditioner.meet = meet  # a replay calls what the forward pass called
    loss = weighed(net(x)) if place == "replay" else None
    waiting[0] = True

    def evaluate() -> int:
        waiting[0] = False
        return code_of_gradients(net, x)

    with ThreadPoolExecutor(1) as pool:
        work = (lambda: net(x)) if loss is None else loss.backward
        done = pool.submit(work)
        assert inside.wait(60)
        refused = place == "replay" and changed
        try:
            assert in_a_fork(evaluate) == (2 if refused else 0)
        finally:
            go.set()
            done.result(60)


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
