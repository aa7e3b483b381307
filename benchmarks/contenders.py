"""How each contender runs a network: plain, checkpointed, inverted, or by a peer."""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from benchmarks.peers import peers
from invtorch import InvertibleSequential

Runner = Callable[[Tensor], Tensor]


def plain(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with plain autograd."""
    net.memory = "store"
    return net(x)  # type: ignore[no-any-return]


def checkpointed(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with `torch.utils.checkpoint` around every layer."""
    net.memory = "store"
    for layer in net:
        x = checkpoint(layer, x, use_reentrant=False)
    return x


def segmented(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with `torch.utils.checkpoint` around √L segments of √L layers."""
    net.memory = "store"
    segments = round(math.sqrt(len(net)))
    return checkpoint_sequential(  # type: ignore[no-any-return]
        list(net), segments, x, use_reentrant=False
    )


def inverted(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with pure inversion."""
    net.memory, net.anchors = "invert", 0
    return net(x)  # type: ignore[no-any-return]


def anchored(net: InvertibleSequential, x: Tensor) -> Tensor:
    """Run with this library's default: inversion and eight anchors."""
    net.memory, net.anchors = "invert", 8
    return net(x)  # type: ignore[no-any-return]


CONTENDERS: dict[str, Callable[[InvertibleSequential, Tensor], Tensor]] = {
    "plain autograd": plain,
    "checkpoint every layer": checkpointed,
    "checkpoint in √L segments": segmented,
    "invtorch, 8 anchors (default)": anchored,
    "invtorch, anchors=0": inverted,
}


def runners(net: InvertibleSequential) -> dict[str, Runner]:
    """Return all that can run the network, the peers last, each ready to run it.

    They share the layers and parameters of the network, and may take turns.
    """
    ours = {name: partial(contender, net) for name, contender in CONTENDERS.items()}
    return {**ours, **peers(net)}


def step(run: Runner, x: Tensor) -> None:
    """Make one training step, without the optimizer."""
    run(x).square().mean().backward()
