"""Nothing that a pass made outlives it."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from invtorch import InvertibleSequential
from invtorch.planning import measure_memory
from invtorch.recording import is_recording
from tests.devices import ON_THE_CPU
from tests.parts import Scale
from tests.stacks import both, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal


def test_a_dropped_forward_and_a_finished_backward_free_their_states() -> None:
    net, x = stack(3), sample()

    class Witness(Scale):
        last = None

        def forward(self, x):
            y = super().forward(x)
            Witness.last = weakref.ref(y.untyped_storage())
            return y

    net.insert(5, Witness(4).double())
    gc.disable()
    try:
        y = net(x)
        del y
        loss = net(x).sum()
        loss.backward()
        assert Witness.last() is None
    finally:
        gc.enable()


def test_an_exception_in_forward_leaves_no_tape_behind(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)

    class Fails(Scale):
        def forward(self, _):
            raise OSError("no such luck")

    net.insert(5, Fails(4).double())
    for _ in range(2):
        with pytest.raises(OSError, match="no such luck"):
            net(x)
        assert not is_recording()
    del net[5]
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), x)))


def test_an_exception_in_backward_leaves_no_tape_behind(anchors) -> None:
    net, x = stack(anchors), sample(requires_grad=True)
    fail = True

    class Fails(Scale):
        def inverse(self, y):
            if fail:
                raise OSError("no such luck")
            return super().inverse(y)

        def forward(self, x):
            if fail and torch.is_grad_enabled():
                raise OSError("no such luck")
            return super().forward(x)

    net.insert(5, Fails(4).double())
    before = torch.get_rng_state()
    with pytest.raises(OSError, match="no such luck"):
        net(x).sum().backward()
    assert not is_recording()
    assert torch.equal(torch.get_rng_state(), before)
    fail = False
    net.zero_grad()
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), x)))


def test_a_thread_that_fails_does_not_disturb_another() -> None:
    net = stack(0)
    x = sample()
    started, failed = threading.Event(), threading.Event()

    class Waits(Scale):
        def forward(self, x):
            started.set()
            failed.wait(10)
            return super().forward(x)

    waiting = InvertibleSequential(*net, Waits(4).double(), anchors=0)

    def fail() -> None:
        started.wait(10)
        try:
            with pytest.raises(ValueError, match="cannot be split"):
                net(sample(1))
        finally:
            failed.set()

    def gradients():
        return torch.autograd.grad(weighed(waiting(x)), parameters(waiting))

    with ThreadPoolExecutor(2) as pool:
        failing, running = pool.submit(fail), pool.submit(gradients)
        failing.result()
        found = running.result()
    waiting.memory = "store"
    assert_all_equal(found, gradients())


@ON_THE_CPU
def test_no_cycle_keeps_activations_after_an_exception_or_a_partial_backward() -> None:
    net, x = stack(3), sample(requires_grad=True)

    def partial() -> None:
        y = net(x)
        torch.autograd.grad(y.sum(), net[7].vectors)

    def forgotten() -> None:
        weighed(net(x))

    gc.disable()
    try:
        for action in (partial, forgotten):
            assert measure_memory(action).live == 0
    finally:
        gc.enable()


class FailsOnce(torch.autograd.Function):
    """The identity, whose first backward pass fails as one without memory does."""

    failed = False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if not FailsOnce.failed:
            FailsOnce.failed = True
            raise torch.OutOfMemoryError("no memory")
        return grad


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.parametrize("memory", ["invert", "checkpoint", "offload"])
def test_a_backward_that_failed_can_be_tried_again(anchors, memory, place) -> None:
    net, x = stack(anchors, depth=9), sample(requires_grad=True)
    above = [p for layer in net[place:] for p in layer.parameters()]
    net[place].conditioner.register_forward_hook(lambda *a: FailsOnce.apply(a[-1]))

    def gradients():
        FailsOnce.failed, y = False, net(x)
        loss = y.square().sum()
        seed = torch.autograd.grad(loss, y)
        with pytest.raises(torch.OutOfMemoryError):
            torch.autograd.grad(y, above, seed, retain_graph=place < len(net) - 1)
        return torch.autograd.grad(y, [x, *parameters(net)], seed)

    results = []
    for net.memory in (memory, "store"):
        results.append(gradients())
    assert_all_equal(*results)
