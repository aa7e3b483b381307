"""What differs between devices: random numbers, autocast, scaling, allocated bytes."""

import pytest
import torch

from invtorch import GatedResidualBlock, InvertibleSequential, OrthogonalCoupling
from invtorch.engine import guard, strategies
from invtorch.planning import measure_memory
from tests.stacks import both, parameters, sample, stack
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


def test_memory_does_not_know_depth(device) -> None:
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


def test_nothing_waits_for_the_device_until_all_layers_are_done(
    monkeypatch, anchors
) -> None:
    """The meta device has no values: whatever else would read one would raise."""
    events = []

    def read(taken):
        events.append("values are read")
        return [torch.ones(t.shape).tolist() for t in taken]

    monkeypatch.setattr(strategies, "_real", lambda state: True)
    monkeypatch.setattr(guard, "_values", read)
    with torch.device("meta"):
        net, x = stack(anchors), sample(requires_grad=True)
    for layer in net:
        layer.conditioner.register_forward_hook(lambda *_: events.append("layer"))
    net(x).sum().backward()
    end = 2 * len(net)
    assert events[:end] == ["layer"] * end
    assert set(events[end:]) == {"values are read"}
