"""The situations in which a network may be trained: each is right, or raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

from invtorch.containers import InvertibleSequential
from invtorch.module import InvertibleModule
from invtorch.testing.assertions import between_others, leaves, same_draws
from invtorch.testing.compare import (
    Tensors,
    as_tuple,
    assert_close,
    assert_states_close,
    weighed,
)

Results = tuple[Tensor | None, ...]


class Use(NamedTuple):
    """A network, a state with its leaves, and a context.

    Attributes:
        net: The network.
        x: The state.
        inputs: Its tensors that require a gradient.
        context: Further arguments.
    """

    net: Any
    x: Any
    inputs: list[Tensor]
    context: tuple[Any, ...]


Situation = Callable[[Use], Results]
REFUSALS = (RuntimeError, TypeError, ValueError, NotImplementedError)


def _targets(
    net: InvertibleSequential, inputs: list[Tensor], context: tuple[Any, ...]
) -> list[Tensor]:
    tensors = [c for c in context if isinstance(c, Tensor) and c.requires_grad]
    return [*inputs, *tensors, *(p for p in net.parameters() if p.requires_grad)]


def _frozen(use: Use) -> Results:
    """Half of the parameters are frozen."""
    net, x, inputs, context = use
    for i, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    return grad(weighed(net(x, *context)), _targets(net, inputs, context))


def _input_without_gradient(use: Use) -> Results:
    """The input needs no gradient."""
    net, x, _, context = use
    state = tuple(t.detach() for t in as_tuple(x))
    y = net(state if isinstance(x, tuple) else state[0], *context)
    targets = _targets(net, [], context)
    return grad(weighed(y), targets, allow_unused=True) if targets else ()


def _input_used_again(use: Use) -> Results:
    """The caller goes on using the input."""
    net, x, inputs, context = use
    loss = weighed(net(x, *context)) + sum((t * t.conj()).real.sum() for t in inputs)
    return grad(loss, _targets(net, inputs, context), allow_unused=True)


def _twice(use: Use) -> Results:
    """The graph is retained, and differentiated twice."""
    net, x, inputs, context = use
    loss, targets = weighed(net(x, *context)), _targets(net, inputs, context)
    first = grad(loss, targets, retain_graph=True, allow_unused=True)
    return (*first, *grad(loss, targets, allow_unused=True))


def _two_forwards(use: Use) -> Results:
    """Two forward passes come before one backward pass."""
    net, x, inputs, context = use
    halves = tuple(t / 2 for t in as_tuple(x))
    other = net(halves if isinstance(x, tuple) else halves[0], *context)
    loss = weighed(net(x, *context)) + weighed(other)
    return grad(loss, _targets(net, inputs, context), allow_unused=True)


def _strided(use: Use) -> Results:
    """The input is not contiguous."""
    net, x, inputs, context = use
    views = tuple(torch.stack([t, t], -1)[..., 0] for t in as_tuple(x))
    y = net(views if isinstance(x, tuple) else views[0], *context)
    return grad(weighed(y), _targets(net, inputs, context), allow_unused=True)


def _checkpointed(use: Use) -> Results:
    """The network is inside of a checkpoint."""
    net, x, inputs, context = use
    y = checkpoint(net, x, *context, use_reentrant=False)
    return grad(weighed(y), _targets(net, inputs, context), allow_unused=True)


def _functional(use: Use) -> Results:
    """The parameters are those of `torch.func.functional_call`."""
    net, x, inputs, context = use
    parameters = {n: p * 1 for n, p in net.named_parameters()}
    y = torch.func.functional_call(net, parameters, (x, *context))
    return grad(weighed(y), _targets(net, inputs, context), allow_unused=True)


def _copied(use: Use) -> Results:
    """The network is a deep copy with a loaded state dict."""
    net, x, inputs, context = use
    other = copy.deepcopy(net)
    other.load_state_dict(net.state_dict())
    y = other(x, *context)
    return grad(weighed(y), _targets(other, inputs, context), allow_unused=True)


def _evaluated(use: Use) -> Results:
    """The network is in evaluation mode, without gradients."""
    net, x, _, context = use
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(x, *context)
    return as_tuple(y)


def _parameter_changed(use: Use) -> Results:
    """A parameter is changed in place before the backward pass."""
    net, x, inputs, context = use
    loss, targets = weighed(net(x, *context)), _targets(net, inputs, context)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    try:
        return grad(loss, targets, allow_unused=True)
    finally:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(1)


def _output_changed(use: Use) -> Results:
    """The output is changed in place before the backward pass."""
    net, x, inputs, context = use
    y = net(x, *context)
    loss, targets = weighed(y), _targets(net, inputs, context)
    with torch.no_grad():
        for tensor in as_tuple(y):
            tensor.mul_(2)
    return grad(loss, targets, allow_unused=True)


SITUATIONS: tuple[Situation, ...] = (
    *(_frozen, _input_without_gradient, _input_used_again, _twice, _two_forwards),
    *(_strided, _checkpointed, _functional, _copied, _evaluated),
    *(_parameter_changed, _output_changed),
)


def assert_right_or_raises(
    module: InvertibleModule,
    x: Tensor | Tensors,
    *context: Any,
    rtol: float | None = None,
) -> None:
    """Assert that no ordinary use of the module gives a wrong number silently.

    The module is used as people use networks: with frozen parameters, an input that is
    used again, a retained graph, two forward passes, a checkpoint around, changes in
    place before the backward pass, and more. In each situation the gradients must be
    those of plain autograd, or an error is raised.

    Args:
        module: The module. Its parameters are left as they are.
        x: An input of at least one sample.
        context: Further arguments; tensors have the batch as their first axis.
        rtol: The relative error allowed, by default what rounding explains.

    Raises:
        AssertionError: If a result is wrong; the message names the situation.

    Examples:
        >>> from invtorch.testing import assert_right_or_raises
        >>> assert_right_or_raises(Householder1x1(4), torch.randn(2, 4))
    """
    name = type(module).__name__
    copy.deepcopy(module)(x, *context)  # an error in ordinary use is no refusal
    for situation in SITUATIONS:
        results: list[Results] = []
        for memory in ("store", "invert"):
            net = between_others(copy.deepcopy(module), memory=memory, anchors=0)
            state, inputs = leaves(x)
            try:
                with same_draws(net, context):
                    results.append(situation(Use(net, state, inputs, context)))
            except REFUSALS:
                break  # plain autograd, or the container, refuses: nothing is silent
        if len(results) == 2:
            what = f"{name}: {(situation.__doc__ or '').rstrip('.').lower()}"
            assert_close(what, results[1], results[0], rtol)
    _assert_independent(module, x, context, rtol)


def _assert_independent(
    module: InvertibleModule,
    x: Tensor | Tensors,
    context: tuple[Any, ...],
    rtol: float | None,
) -> None:
    """Assert that a sample alone gives what it gives in a batch, in each direction."""
    net = copy.deepcopy(module).eval()
    with torch.no_grad():
        y = net(x, *context)
        own = [c[:1] if isinstance(c, Tensor) and c.ndim else c for c in context]
        for direction, start in (("forward", x), ("inverse", y)):
            function = getattr(net, direction)
            whole = as_tuple(function(start, *context))
            one = tuple(t[:1] for t in as_tuple(start))
            alone = function(one if isinstance(start, tuple) else one[0], *own)
            name = f"{type(module).__name__}{'.inverse' * (direction == 'inverse')}"
            what = f"{name}: a sample alone, compared with it in a batch"
            expected = tuple(t[:1] for t in whole)
            assert_states_close(what, as_tuple(alone), expected, one, rtol)
