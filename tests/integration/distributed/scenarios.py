"""What two processes do with one network; each returns gradients and their oracle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from invtorch import (
    ActNorm,
    AdditiveCoupling,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.planning import memory_report
from tests.parts import Conditioner, known
from tests.strategies import weighed

Outcome = tuple[list[Tensor], list[Tensor]]
DEPTH = 12


def network(anchors: int, shared: bool = False) -> InvertibleSequential:
    torch.manual_seed(0)
    layers = []
    for i in range(DEPTH):
        conditioner = Conditioner(2, 2) if i % 4 in (0, 3) else known(2, 2)
        layers.append(
            OrthogonalCoupling(conditioner, channels=4)
            if i % 2
            else AdditiveCoupling(conditioner)
        )
    if shared:
        layers += [layers[2], layers[5], layers[2]]
    return InvertibleSequential(*layers, anchors=anchors).double()


def data(rank: int, turn: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(10 * turn + rank)
    return torch.randn(2, 4, 5, 4, generator=generator, dtype=torch.float64)


def expected(
    net: InvertibleSequential, turns: int = 1, world: int = 2, start: int = 0
) -> list[Tensor | None]:
    """Return the mean gradient over the ranks, by plain autograd in one process."""
    net.zero_grad()
    net.memory = "store"
    for turn in range(start, turns):
        for rank in range(world):
            (weighed(net(data(rank, turn))) / world).backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.memory = "invert"
    return gradients


def gradients(net: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in net.parameters()]


def shared_block(rank: int, anchors: int) -> Outcome:
    net = network(anchors, shared=True)
    oracle = expected(net)
    wrapped = DistributedDataParallel(net)
    weighed(wrapped(data(rank))).backward()
    return gradients(net), oracle


def find_unused_parameters(rank: int, anchors: int) -> Outcome:
    net = network(anchors)
    for layer in net:
        layer.idle = nn.Linear(3, 3).double()
    oracle = expected(net)
    wrapped = DistributedDataParallel(net, find_unused_parameters=True)
    weighed(wrapped(data(rank))).backward()
    found = gradients(net)
    assert sum(g is None or not g.any() for g in found) >= 2 * DEPTH
    pairs = [(f, o) for f, o in zip(found, oracle, strict=True) if o is not None]
    return [f for f, _ in pairs], [o for _, o in pairs]


def static_graph(rank: int, anchors: int) -> Outcome:
    net = network(anchors, shared=True)
    oracle = expected(net)
    wrapped = DistributedDataParallel(net, static_graph=True)
    for _ in range(3):
        net.zero_grad()
        weighed(wrapped(data(rank))).backward()
    return gradients(net), oracle


def no_sync(rank: int, anchors: int) -> Outcome:
    net = network(anchors)
    oracle = expected(net, turns=2)
    wrapped = DistributedDataParallel(net)
    with wrapped.no_sync():
        weighed(wrapped(data(rank, 0))).backward()
    weighed(wrapped(data(rank, 1))).backward()
    return gradients(net), oracle


def buckets(rank: int, anchors: int) -> tuple[list[str], int]:
    """Return the order of replays and bucket exchanges in one backward pass."""
    net, events = network(anchors), []
    for i, layer in enumerate(net):
        layer.conditioner.register_forward_hook(
            lambda *_, i=i: events.append(f"layer {i}")
        )
    wrapped = DistributedDataParallel(net, bucket_cap_mb=1e-3)

    def exchange(_: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        events.append("bucket")
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, exchange)
    for _ in range(2):  # buckets follow the order of the first backward
        events.clear()
        loss = weighed(wrapped(data(rank)))
        events.clear()
        loss.backward()
    return events, DEPTH


def _mesh() -> Any:
    return init_device_mesh("cpu", (2,))


def _whole(net: nn.Module) -> list[Tensor]:
    return [p.grad.full_tensor() for p in net.parameters()]


def _sharded(anchors: int, shared: bool, **options: Any) -> InvertibleSequential:
    net = network(anchors, shared)
    for layer in dict.fromkeys(net):
        fully_shard(layer, mesh=_mesh(), **options)
    return fully_shard(net, mesh=_mesh(), **options)


def shard_each_layer(rank: int, anchors: int) -> Outcome:
    oracle = expected(network(anchors))
    net = _sharded(anchors, shared=False)
    for _ in range(2):
        net.zero_grad()
        weighed(net(data(rank))).backward()
    return _whole(net), oracle


def shard_each_layer_with_a_shared_block(rank: int, anchors: int) -> Outcome:
    oracle = expected(network(anchors, shared=True))
    net = _sharded(anchors, shared=True)
    weighed(net(data(rank))).backward()
    return _whole(net), oracle


def shard_the_container(rank: int, anchors: int) -> Outcome:
    oracle = expected(network(anchors))
    net = fully_shard(network(anchors), mesh=_mesh())
    weighed(net(data(rank))).backward()
    return _whole(net), oracle


def shard_inside_a_larger_model(rank: int, anchors: int) -> Outcome:
    """Reshard the container after forward, because it is not the root."""

    def model() -> nn.Sequential:
        net = network(anchors)
        return nn.Sequential(nn.Conv2d(4, 4, 1).double(), net, nn.Tanh())

    whole = model()
    net = whole[1]
    oracle = []
    for p in whole.parameters():
        p.grad = None
    net.memory = "store"
    for r in range(2):
        (weighed(whole(data(r))) / 2).backward()
    oracle = [p.grad for p in whole.parameters()]
    torch.manual_seed(0)
    sharded = model()
    sharded.load_state_dict(whole.state_dict())
    fully_shard(sharded[1], mesh=_mesh(), reshard_after_forward=True)
    fully_shard(sharded, mesh=_mesh())
    weighed(sharded(data(rank))).backward()
    return _whole(sharded), oracle


def shard_each_layer_with_an_inner_loss(rank: int, anchors: int) -> Outcome:
    """Invert the layers above the loss, which get no gradient."""

    def gradients_of(net: InvertibleSequential, x: Tensor, scale: float) -> None:
        inner: list[Tensor] = []
        handle = net[4].register_forward_hook(lambda *call: inner.append(call[-1]))
        with handle:
            net(x)
        (weighed(inner[0]) * scale).backward()

    net = network(anchors)
    net.memory = "store"
    for r in range(2):
        gradients_of(net, data(r), 0.5)
    oracle = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()
    ]
    net = _sharded(anchors, shared=False)
    gradients_of(net, data(rank), 1.0)
    found = [p.grad for p in net.parameters()]
    whole = [g.full_tensor() if g is not None else None for g in found]
    pairs = zip(whole, oracle, strict=True)
    return [torch.zeros_like(o) if g is None else g for g, o in pairs], oracle


def mixed_precision_policy(rank: int, anchors: int) -> Outcome:
    """Compare with `memory="store"` under the same policy."""
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float64)
    results = []
    for memory in ("invert", "store"):
        net = _sharded(anchors, shared=False, mp_policy=policy)
        net.memory = memory
        y = net(data(rank))
        assert y.dtype == torch.float32
        weighed(y).backward()
        results.append([gradient.float() for gradient in _whole(net)])
    return results[0], results[1]


def shard_a_conditioner(rank: int, anchors: int) -> str:
    """Return the error that sharding inside of a layer raises."""
    net = network(anchors)
    fully_shard(net[3].conditioner, mesh=_mesh())
    fully_shard(net, mesh=_mesh())
    try:
        weighed(net(data(rank))).backward()
    except RuntimeError as error:
        return str(error)
    return ""


def shard_the_container_with_an_inner_loss(rank: int, anchors: int) -> str:
    """Return the error where the parameters of the layers above are not gathered."""
    net, inner = network(anchors), []
    net[4].register_forward_hook(lambda *call: inner.append(call[-1]))
    whole = nn.Sequential(net, nn.Identity())
    fully_shard(net, mesh=_mesh(), reshard_after_forward=True)
    fully_shard(whole, mesh=_mesh())
    whole(data(rank))
    try:
        weighed(inner[0]).backward()
    except RuntimeError as error:
        return str(error)
    return ""


class Wrong(AdditiveCoupling):
    """Its inverse takes back only 99 % of what was added."""

    replay = None

    def inverse(self, y: Tensor, *context: Tensor) -> Tensor:
        x = super().inverse(y, *context)
        return y + 0.99 * (x - y)


def a_guard_that_raises(rank: int, anchors: int) -> Outcome:
    """Go on after an error, which must find the gradients exchanged."""
    net = network(anchors)
    net[3] = Wrong(Conditioner(2, 2)).double()
    oracle = expected(net)
    wrapped = DistributedDataParallel(net)
    with pytest.raises(RuntimeError, match=r"inverting layer 3 \(Wrong\)"):
        weighed(wrapped(data(rank))).backward()
    exchanged = [[torch.empty_like(g) for _ in range(2)] for g in gradients(net)]
    for both, gradient in zip(exchanged, gradients(net), strict=True):
        torch.distributed.all_gather(both, gradient)
        assert torch.equal(*both)
    net.zero_grad()
    net[3].memory = "checkpoint"
    weighed(wrapped(data(rank))).backward()
    return gradients(net), oracle


def statistics_of_all_ranks(rank: int, anchors: int) -> Outcome:
    """Initialize layers from data, whole and sharded, as one process with all data."""
    layers = [ActNorm(4).double() for _ in range(2)]
    fully_shard(layers[1], mesh=_mesh())
    found = []
    for layer in layers:
        layer.initialize(data(rank))
        values = layer.log_scale.detach(), layer.shift.detach()
        found += [v.full_tensor() if isinstance(v, DTensor) else v for v in values]
    whole = torch.cat([data(r) for r in range(2)]).movedim(1, 0).flatten(1)
    expected = [-whole.std(1).log(), -whole.mean(1) / whole.std(1)]
    return found, 2 * expected


def normalized(anchors: int) -> InvertibleSequential:
    """Return a network whose layers are initialized from the first batch."""
    torch.manual_seed(0)
    layers: list[InvertibleModule] = []
    for i in range(DEPTH // 2):
        coupling = AdditiveCoupling(Conditioner(2, 2), swap=i % 2 == 1)
        layers += [ActNorm(4), InvertibleSequential(coupling) if i == 1 else coupling]
    return InvertibleSequential(*layers, anchors=anchors).double()


def initialized(anchors: int) -> InvertibleSequential:
    """Return the network after the batches of all ranks, in one process."""
    net = normalized(anchors)
    with torch.no_grad(), alone():
        net(torch.cat([data(rank) for rank in range(2)]))
    return net


@contextmanager
def alone() -> Iterator[None]:
    """Compute statistics of one process only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: False)
        yield


def assert_equal_on_both_ranks(tensors: list[Tensor]) -> None:
    """Assert that the ranks have the same bits."""
    for tensor in tensors:
        both = [torch.empty_like(tensor) for _ in range(2)]
        torch.distributed.all_gather(both, tensor.detach().contiguous())
        assert torch.equal(*both)


def initialize_under_ddp(rank: int, anchors: int) -> Outcome:
    """Set the parameters from the batches of both ranks, then differentiate."""
    single = initialized(anchors)
    oracle = [p.detach() for p in single.parameters()] + expected(single)
    net = normalized(anchors)
    wrapped = DistributedDataParallel(net)
    weighed(wrapped(data(rank))).backward()
    values = [p.detach() for p in net.parameters()]
    assert_equal_on_both_ranks(values)
    return values + gradients(net), oracle


def _normalized_and_sharded(anchors: int) -> InvertibleSequential:
    net = normalized(anchors)
    for layer in net:
        fully_shard(layer, mesh=_mesh())
    return fully_shard(net, mesh=_mesh())


def initialize_when_sharded(rank: int, anchors: int) -> Outcome:
    single = initialized(anchors)
    oracle = [p.detach() for p in single.parameters()] + expected(single)
    net = _normalized_and_sharded(anchors)
    weighed(net(data(rank))).backward()
    values = [p.detach().full_tensor() for p in net.parameters()]
    assert_equal_on_both_ranks(values)
    return values + _whole(net), oracle


def resume_under_ddp(rank: int, anchors: int) -> Outcome:
    """Continue on other batches, from which nothing is initialized."""
    single = initialized(anchors)
    values = [p.detach().clone() for p in single.parameters()]
    oracle = values + expected(single, turns=2, start=1)
    net = normalized(anchors)
    net.load_state_dict(single.state_dict())
    wrapped = DistributedDataParallel(net)
    weighed(wrapped(data(rank, 1))).backward()
    return [p.detach() for p in net.parameters()] + gradients(net), oracle


def resume_when_sharded(rank: int, anchors: int) -> Outcome:
    """The same, from the state dict of a sharded run."""
    single = initialized(anchors)
    values = [p.detach().clone() for p in single.parameters()]
    oracle = values + expected(single, turns=2, start=1)
    before = _normalized_and_sharded(anchors)
    with torch.no_grad():
        before(data(rank))
    net = _normalized_and_sharded(anchors)
    net.load_state_dict(before.state_dict())
    weighed(net(data(rank, 1))).backward()
    found = [p.detach().full_tensor() for p in net.parameters()]
    return found + _whole(net), oracle


def report_of_shards(rank: int, anchors: int) -> list[tuple[int, ...]]:
    """Return what a report says of layers that are sharded, and what a rank keeps."""
    found = []
    for rows in range(1, 8):
        net = nn.Linear(3, rows)
        fully_shard(net, mesh=_mesh())
        optimizer = torch.optim.Adam(net.parameters())
        report = memory_report(
            lambda net=net: net(torch.ones(2, 3)).sum().backward(), net, optimizer
        )
        kept = len(torch.arange(rows).chunk(2)[rank]) if rank < min(rows, 2) else 0
        own, steps = 4 * 4 * kept, 2 * 4  # three weights and a bias; a count each
        found.append((*report[:3], own, own, 2 * own + steps))
    return found


GRADIENTS: dict[str, Callable[[int, int], Outcome]] = {
    scenario.__name__: scenario
    for scenario in (
        shared_block,
        find_unused_parameters,
        static_graph,
        no_sync,
        a_guard_that_raises,
        statistics_of_all_ranks,
        initialize_under_ddp,
        initialize_when_sharded,
        resume_under_ddp,
        resume_when_sharded,
        shard_each_layer,
        shard_each_layer_with_a_shared_block,
        shard_the_container,
        shard_inside_a_larger_model,
        shard_each_layer_with_an_inner_loss,
        mixed_precision_policy,
    )
}
OTHERS: dict[str, Callable[[int, int], Any]] = {
    "buckets": buckets,
    "report_of_shards": report_of_shards,
    "shard_a_conditioner": shard_a_conditioner,
    "shard_the_container_with_an_inner_loss": shard_the_container_with_an_inner_loss,
}
