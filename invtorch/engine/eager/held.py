"""Tensors inside of a layer that somebody holds, for instance to ask for a gradient.

A forward hook of a module inside of a layer may keep the output $f$ of the module. The
graph from the input $x$ of the layer to $f$ then lives on, and $f$ is another input of
the layer's node. A replay is cut at $f$: the node returns the gradient of $f$, and for
$x$ and the parameters only what does not pass through $f$. PyTorch adds the rest, from
the gradient of $f$ and the graph that lives on, as it does without a container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor, nn

from invtorch import _torch
from invtorch.replay import Gradients, PullBack, alias_of, start_of


class Held(NamedTuple):
    """An output of a module inside of a layer.

    Attributes:
        module: The module.
        call: How often the module was called before, in the same call of the layer.
        tensor: A weak reference to the output.
        version: The version counter of the output when it was returned.
    """

    module: nn.Module
    call: int
    tensor: ref[Tensor]
    version: int

    def now(self) -> Tensor | None:
        """Return the tensor if somebody holds it, and it was not changed in place."""
        tensor = self.tensor()
        if tensor is None or _torch.versions([tensor]) != [self.version]:
            return None
        return tensor


@contextmanager
def watched(parts: Sequence[nn.Module]) -> Iterator[list[Held]]:
    """Note what modules return while a layer is evaluated for the first time."""
    noted: list[Held] = []

    def note(module: nn.Module, call: int, output: Tensor) -> None:
        if output.grad_fn is not None:
            (version,) = _torch.versions([output])
            noted.append(Held(module, call, ref(output), version))

    with _outputs(parts[1:], note):
        yield noted


@contextmanager
def cut(held: Sequence[Held], attached: bool) -> Iterator[list[Tensor | None]]:
    """Replace what is held by leaves while a layer is evaluated again.

    Args:
        held: What is held.
        attached: Whether it is replaced by aliases of itself, not by leaves.

    Returns:
        The replacements, in the order of `held`; `None` for what is not held any more.
    """
    places = {(id(one.module), one.call): i for i, one in enumerate(held)}
    found: list[Tensor | None] = [None] * len(held)

    def replace(module: nn.Module, call: int, output: Tensor) -> Tensor | None:
        place = places.get((id(module), call))
        tensor = None if place is None else held[place].now()
        if place is None or tensor is None:
            return None
        leaf = alias_of(tensor) if attached else output.detach().requires_grad_()
        found[place] = leaf
        return start_of(leaf)

    with _outputs([*{id(one.module): one.module for one in held}.values()], replace):
        yield found


def skipping(pull_back: PullBack, found: Sequence[Tensor | None]) -> PullBack:
    """Return a pull back that also returns `None` for what is not held any more."""
    present = [tensor is not None for tensor in found]

    def pull(grads: Sequence[Tensor | None], needed: Sequence[bool]) -> Gradients:
        start = len(needed) - len(present)
        inside = [n for n, there in zip(needed[start:], present, strict=True) if there]
        found = pull_back(grads, [*needed[:start], *inside])
        rest = iter(found[start:])
        return [*found[:start], *(next(rest) if there else None for there in present)]

    return pull


@contextmanager
def _outputs(
    modules: Sequence[nn.Module],
    function: Callable[[nn.Module, int, Tensor], Tensor | None],
) -> Iterator[None]:
    """Call a function with what modules return, before their own hooks."""
    counts = dict.fromkeys(map(id, modules), 0)

    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        count = counts[id(module)]
        counts[id(module)] += 1
        return function(module, count, output) if isinstance(output, Tensor) else None

    handles = [m.register_forward_hook(hook, prepend=True) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
