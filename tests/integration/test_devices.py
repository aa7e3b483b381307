"""What differs between devices: random numbers, rounding, threads, allocated bytes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from torch import nn

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.engine import dispatch
from invtorch.engine.guard.marks import Marks
from invtorch.planning import measure_memory
from invtorch.precision import tf32_dtypes
from tests.stacks import both, couplings, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, relative_error

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request) -> str:
    return request.param


def random_state(device: str) -> torch.Tensor:
    module = torch if device == "cpu" else torch.cuda
    return module.get_rng_state()


def test_dropout_repeats_its_mask_and_moves_no_random_state(device, anchors) -> None:
    net = stack(anchors, dropout=0.5).to(device).train()
    x = sample().to(device).requires_grad_()

    def two_forwards_before_one_backward():
        torch.manual_seed(3)
        loss = weighed(net(x)) + weighed(net(x) * 2)
        before = random_state(device)
        found = torch.autograd.grad(loss, [x, *parameters(net)])
        assert torch.equal(random_state(device), before)
        return found

    assert_all_equal(*both(net, two_forwards_before_one_backward))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaled_loss(device, anchors, dtype) -> None:
    net, x = stack(anchors).float().to(device), sample().float().to(device)
    scaler = torch.amp.GradScaler(device, init_scale=256.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)

    def gradients():
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            y = net(x)
        assert y.dtype == torch.float32
        scaler.scale(weighed(y)).backward()
        scaler.unscale_(optimizer)
        scaler.update()
        return [p.grad for p in parameters(net)]

    pairs = zip(*both(net, gradients), strict=True)
    assert all(relative_error(f, e) < 20 * torch.finfo(dtype).eps for f, e in pairs)


def test_memory_is_equal_at_every_depth(device) -> None:
    x = torch.randn(1, 16, 32, 32, device=device)

    def kept(depth: int, memory: str = "invert") -> float:
        block = GatedResidualBlock(8, 8, hidden=8).to(device)
        layers = [OrthogonalCoupling(block, channels=16) for _ in range(depth)]
        options = {"anchors": 0, "guard": None, "memory": memory}
        net = InvertibleSequential(*layers, **options).to(device)
        net(x)  # what libraries keep for themselves, they keep from here on
        return measure_memory(lambda: net(x), device=device).live

    assert kept(4) == kept(32)
    assert kept(32, "checkpoint") > kept(4, "checkpoint") + 27 * x.nbytes


def paper(device: str, depth: int, **options) -> InvertibleSequential:
    """Return the paper's layer at its size of 64 channels, in float32."""
    layers = [
        OrthogonalCoupling(
            GatedResidualBlock(32, 32, hidden=64, stride=(1, 2, 4, 8)[i % 4]),
            channels=64,
        )
        for i in range(depth)
    ]
    return InvertibleSequential(*layers, **options).float().to(device)


def gradient(net, x) -> torch.Tensor:
    net.zero_grad()
    net(x).square().mean().backward()
    return torch.cat([p.grad.flatten().double() for p in parameters(net)])


def image(device: str) -> torch.Tensor:
    return torch.randn(1, 64, 64, 64, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["invert", "offload", "checkpoint", "auto"])
def test_strategies_on_the_device(device, memory) -> None:
    x = image(device).double()  # in float32 a rounding may be a step of an activation
    net = paper(device, 12, budget=26 * x.nbytes).double()
    net.memory = "store"
    expected = gradient(net, x)
    plain = measure_memory(lambda: gradient(net, x), device=device).peak
    net.memory = memory
    for _ in range(2):
        assert relative_error(gradient(net, x), expected) < 1e-9
    assert measure_memory(lambda: gradient(net, x), device=device).peak < plain
    if memory == "auto":
        peak = measure_memory(lambda: net(x).sum().backward(), device=device).peak
        assert peak <= 1.01 * net.budget


@pytest.mark.parametrize("memory", ["offload", "checkpoint"])
def test_offloaded_states_leave_the_device(device, memory) -> None:
    net, x = paper(device, 8, anchors=0, guard=None, memory=memory), image(device)
    net(x)
    live = measure_memory(lambda: net(x), device=device).live
    leave = memory == "offload" and device != "cpu"
    assert live == (1 if leave else 8) * x.nbytes


class Wrong(AdditiveCoupling):
    """Its inverse takes back only 99 % of what was added."""

    replay = None

    def inverse(self, y, *context):
        x = super().inverse(y, *context)
        return y + 0.99 * (x - y)


@pytest.mark.parametrize("anchors", [0, 2])
def test_the_guard_names_the_layer(device, anchors) -> None:
    net, x = paper(device, 8, anchors=anchors), image(device)
    net[3] = Wrong(nn.Conv2d(32, 32, 3, padding=1)).to(device)
    with pytest.raises(RuntimeError, match=r"inverting layer 3 \(Wrong\) is off by"):
        gradient(net, x)
    net[3] = AdditiveCoupling(nn.Conv2d(32, 32, 3, padding=1)).to(device)
    gradient(net, x)
    nn.init.constant_(net[3].conditioner.weight, float("inf"))
    with pytest.raises(RuntimeError, match=r"layer 3 \(AdditiveCoupling\) made NaN"):
        gradient(net, x)


@pytest.fixture
def tf32():
    """Return what allows TF32 to convolutions and to products of matrices."""
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()

    def allow(convolution: bool, product: bool) -> None:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.set_float32_matmul_precision("high" if product else "highest")

    yield allow
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


@CUDA
@pytest.mark.parametrize("depth", [32, 100])
@pytest.mark.parametrize("anchors", [0, 8])
def test_factors_rounded_to_tf32_cost_no_more_than_in_autograd(
    tf32, depth, anchors
) -> None:
    tf32(True, False)
    net, x = paper("cuda", depth, anchors=anchors), image("cuda")
    found = gradient(net, x)
    net.memory = "store"
    plain = gradient(net, x)
    truth = gradient(deepcopy(net).double(), x.double())
    assert relative_error(plain, truth) > 1e-5  # they were rounded
    assert relative_error(found, truth) <= 1.1 * relative_error(plain, truth)


def test_what_rounds_to_tf32(tf32) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    kernel, matrix = torch.ones(2, 2, 3, 3), torch.ones(2, 2)
    for convolutions in (False, True):
        for products in (False, True):
            tf32(convolutions, products)
            half = {torch.float16}
            assert tf32_dtypes([matrix], gpu) == (half if products else set())
            for one in (kernel, kernel.cfloat()):
                either = convolutions or products
                assert tf32_dtypes([matrix, one], gpu) == (half if either else set())
            assert (
                tf32_dtypes([kernel], cpu)
                == tf32_dtypes([kernel.double()], gpu)
                == set()
            )
            assert tf32_dtypes([], gpu) == set()


def test_threads_that_train_on_the_device(device, anchors) -> None:
    net = stack(anchors).to(device)
    inputs = [sample().to(device) for _ in range(4)]

    def gradients(x):
        return torch.autograd.grad(weighed(net(x)), parameters(net))

    net.memory = "store"
    expected = [gradients(x) for x in inputs]
    net.memory = "invert"
    with ThreadPoolExecutor(4) as pool:
        for found, reference in zip(pool.map(gradients, inputs), expected, strict=True):
            assert_all_equal(found, reference)


def test_nothing_waits_for_the_device_until_all_layers_are_done(
    monkeypatch, anchors
) -> None:
    """The meta device has no values: whatever else would read one would raise."""
    events = []

    def read(marks):
        events.append("values are read")
        return [torch.ones(mark.shape, device="cpu") for mark in marks.taken]

    monkeypatch.setattr(dispatch, "_has_values", lambda state: True)
    monkeypatch.setattr(Marks, "read", read)
    with torch.device("meta"):
        net, x = stack(anchors), sample(requires_grad=True)
    for layer in couplings(net):
        layer.conditioner.register_forward_hook(lambda *_: events.append("layer"))
    net(x).sum().backward()
    end = 2 * len(net)
    assert events[:end] == ["layer"] * end
    assert set(events[end:]) == {"values are read"}


BREACH = """
import torch
from invtorch import InvertibleModule, InvertibleSequential

class Wrong(InvertibleModule):
    def forward(self, x): return x * 2
    def inverse(self, y): return y / 2.1

net = torch.compile(
    InvertibleSequential(Wrong(), anchors=0), backend="aot_eager", fullgraph=True
)
net(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()
torch.cuda.synchronize()
print("went on")
"""


@CUDA
def test_a_failed_check_in_a_graph_names_the_layer_and_ends_cuda() -> None:
    """In a process of its own, for no test after it would have CUDA."""
    command = [sys.executable, "-c", BREACH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "layer 0 (Wrong)" in done.stderr
