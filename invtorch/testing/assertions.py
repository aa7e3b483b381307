"""Assertions about one module: inverse, gradients, log-determinant and memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from invtorch.containers import InvertibleSequential
from invtorch.engine import DriftError, GuardPolicy
from invtorch.engine.restore.generators import (
    generators_of,
    of_other_libraries,
    on_devices,
)
from invtorch.engine.restore.random_numbers import (
    all_random_states_kept,
    changes_of,
    states_of,
)
from invtorch.memory.measure import measure_memory
from invtorch.module import OPPOSITE, InvertibleModule, VolumePreserving
from invtorch.precision import is_differentiable
from invtorch.testing.compare import (
    Tensors,
    as_tuple,
    assert_close,
    assert_close_together,
    assert_states_close,
    norm_of_all,
    summed,
    tolerance,
    unit_of,
    weighed,
)

LARGEST_JACOBIAN = 1024  # entries of a sample


def assert_invertible(
    module: InvertibleModule,
    x: Tensor | Tensors,
    *context: Any,
    rtol: float | None = None,
) -> None:
    """Assert that `inverse` undoes `forward`, and `forward` undoes `inverse`.

    A module in training mode is tried in evaluation mode too; one that draws random
    numbers, as dropout does, only there: alone, a container repeats them. Gradients are
    those of an identity: of a round trip with respect to the state, and zeros for the
    parameters.

    Args:
        module: The module.
        x: An input.
        context: Further arguments.
        rtol: The relative error allowed: by default what rounding explains in the dtype
            of the state, 4e-11 in double precision. In half precision a copy in double
            precision is tried too. Prefer double precision.

    Raises:
        AssertionError: If a round trip or its gradient is off, or a direction changes
            its argument in place, or returns NaN or Inf.

    Examples:
        >>> from invtorch.testing import assert_invertible
        >>> assert_invertible(Householder1x1(4), torch.randn(2, 4))
    """
    module = without_draws(module, x, context)
    evaluated = copy.deepcopy(module).eval() if module.training else None
    certain = _assert_round_trips(module, x, context, rtol) and not _is_half(x)
    if evaluated is not None:
        certain &= _assert_round_trips(evaluated, x, context, rtol, mode=", in eval()")
    with torch.no_grad():
        y = module(x, *context)
    _assert_identity(module, "forward", x, context, rtol)
    sizes = [sum(t.numel() for t in as_tuple(state)) for state in (x, y)]
    if sizes[0] == sizes[1]:  # where it pads, only the other way is an identity
        _assert_identity(module, "inverse", y, context, rtol)
    if not certain:
        _in_double(assert_invertible, module, x, context)


def _assert_round_trips(
    module: InvertibleModule,
    x: Tensor | Tensors,
    context: tuple[Any, ...],
    rtol: float | None,
    mode: str = "",
) -> bool:
    """Return whether the round trips are right, see `assert_states_close`."""
    name, certain = type(module).__name__, True
    state: Any = x
    with torch.no_grad():
        for direction in OPPOSITE:
            before = [t.clone() for t in as_tuple(state)]
            result = getattr(module, direction)(state, *context)
            for argument, kept in zip(as_tuple(state), before, strict=True):
                if not torch.equal(argument, kept):
                    raise AssertionError(
                        f"{name}.{direction} changed its argument in place: return a "
                        f"new tensor"
                    )
            if not all(torch.isfinite(t).all() for t in as_tuple(result)):
                raise AssertionError(f"{name}.{direction} returned NaN or Inf")
            back = getattr(module, OPPOSITE[direction])(result, *context)
            trip = f"{name}.{OPPOSITE[direction]} after {direction}{mode}"
            ends = as_tuple(state), as_tuple(result)
            certain &= assert_states_close(trip, as_tuple(back), *ends, rtol)
            state = result
    return certain


def _in_double(
    assertion: Callable[..., None],
    module: InvertibleModule,
    x: Tensor | Tensors,
    context: tuple[Any, ...],
) -> None:
    """Assert the same in double precision, if there is one of the module."""
    if all(t.dtype in (torch.float64, torch.complex128) for t in as_tuple(x)):
        return
    if any(t.is_complex() or t.device.type == "mps" for t in as_tuple(x)):
        return
    with suppress(RuntimeError, TypeError, ValueError):  # it is not made for it
        assertion(copy.deepcopy(module).double(), _double(x), *_double(context))


def _double(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_double, value))
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().double() if floating else value


def _assert_identity(
    module: InvertibleModule,
    direction: str,
    start: Tensor | Tensors,
    context: tuple[Any, ...],
    rtol: float | None,
) -> None:
    """Assert that the gradients of a round trip are those of an identity."""
    opposite = OPPOSITE[direction]
    tensors = [c for c in context if isinstance(c, Tensor) and c.requires_grad]
    others = [*tensors, *(p for p in module.parameters() if p.requires_grad)]
    units, found = [unit_of(t) for t in as_tuple(start)], []
    for trip in (True, False):
        state, inputs = leaves(start)
        result = getattr(module, direction)(state, *context) if trip else state
        back = getattr(module, opposite)(result, *context) if trip else state
        loss = summed(back, units)
        if not loss.requires_grad:
            return
        wanted = [*inputs, *others]
        found.append(torch.autograd.grad(loss, wanted, materialize_grads=True))
    # of the parameters, the gradients of both directions cancel
    state, inputs = leaves(start)
    once = summed(getattr(module, direction)(state, *context), units)
    least = norm_of_all(_gradients_of(once, [*inputs, *others]))
    what = f"gradients of {type(module).__name__}.{opposite} after {direction}"
    assert_close_together(what, found[0], found[1], least, rtol)


def assert_gradients_match(
    module: InvertibleModule,
    x: Tensor | Tensors,
    *context: Any,
    second_order: bool = True,
    rtol: float | None = None,
) -> None:
    """Assert that gradients through rebuilt states are those of plain autograd.

    The module is a member of a container that keeps only its own input, so that the
    input of the module is rebuilt. Compared are the gradients of the state, of tensors
    of the context that require one and of the parameters, in both directions, with the
    log-determinant where there is one.

    Args:
        module: The module.
        x: An input.
        context: Further arguments.
        second_order: Whether to compare gradients of gradients too.
        rtol: The relative error allowed, by default what rounding explains.

    Raises:
        AssertionError: If gradients differ.

    Examples:
        >>> from invtorch.testing import assert_gradients_match
        >>> assert_gradients_match(Householder1x1(4), torch.randn(2, 4))
    """
    net = between_others(module, anchors=0, guard=_guard(x))
    with torch.no_grad():
        y = net(x, *context)
    for direction, start in (("forward", x), ("inverse", y)):
        for suffix in ("", "_and_log_det"):
            # in half precision a guard may refuse what a copy in double will tell
            refused = (DriftError, NotImplementedError) if suffix else (DriftError,)
            with suppress(*refused):
                _assert_same_gradients(
                    net, direction + suffix, start, context, second_order, rtol
                )
    if _is_half(x):
        _in_double(assert_gradients_match, module, x, context)


def _assert_same_gradients(
    net: InvertibleSequential,
    method: str,
    start: Tensor | Tensors,
    context: tuple[Any, ...],
    second_order: bool,
    rtol: float | None,
) -> None:
    name = f"{type(net[1]).__name__}.{method}"
    pairs = _gradients(net, method, start, context, second_order)
    (found, found_second), (expected, expected_second) = pairs
    assert_close(f"gradients of {name}", found, expected, rtol)
    if all(torch.isfinite(g).all() for g in expected_second):  # else they overflow
        what = f"second-order gradients of {name}"
        assert_close(what, found_second, expected_second, rtol)


def _is_half(state: Tensor | Tensors) -> bool:
    """Return whether a state has too few digits to tell a formula from another."""
    tensors = as_tuple(state)
    return any(t.is_floating_point() and t.dtype.itemsize < 4 for t in tensors)


def _guard(state: Tensor | Tensors) -> GuardPolicy | None:
    """Return the guard of a container whose gradients are compared.

    It would hide an error that it repairs. In half precision there is none without one:
    what the guard refuses there is left to a copy in double precision.
    """
    return "raise" if _is_half(state) else None


def _gradients(
    net: InvertibleSequential,
    method: str,
    start: Tensor | Tensors,
    context: tuple[Any, ...],
    second_order: bool,
) -> list[tuple[Tensors, Tensors]]:
    """Return gradients, first and second order, rebuilt and of plain autograd."""
    pairs = []
    tensors = [c for c in context if isinstance(c, Tensor) and c.requires_grad]
    others = [*tensors, *(p for p in net.parameters() if p.requires_grad)]

    def loss_and_inputs() -> tuple[Tensor, list[Tensor]]:
        state, inputs = leaves(start)
        return scalar(getattr(net, method)(state, *context), method), inputs

    for memory in ("invert", "store"):
        net.memory = memory
        with same_draws(net, context):
            loss, inputs = loss_and_inputs()
            if not loss.requires_grad:
                return [((), ())] * 2
            first = torch.autograd.grad(loss, [*inputs, *others], allow_unused=True)
            second: Tensors = ()
            if second_order:
                loss, inputs = loss_and_inputs()
                wanted = [*inputs, *others]
                graph = torch.autograd.grad(
                    loss, wanted, create_graph=True, materialize_grads=True
                )
                # linear in the gradients, whose squares may overflow
                second = _gradients_of(summed(graph, [1.0]) + 0 * loss, wanted)
        pairs.append((first, second))
    return pairs


def same_draws(
    module: nn.Module, context: tuple[Any, ...]
) -> AbstractContextManager[object]:
    """Return a context after which random numbers go on from where they were before."""
    own = generators_of([*module.modules()], context)
    return all_random_states_kept(own)


def without_draws(
    module: InvertibleModule, x: Tensor | Tensors, context: tuple[Any, ...]
) -> InvertibleModule:
    """Return the module, or a copy in evaluation mode if it draws random numbers."""
    copied = copy.deepcopy(module)
    sources = [*on_devices(as_tuple(x)[0].device), *of_other_libraries()]
    sources += generators_of([*copied.modules()], context)
    with same_draws(copied, context), torch.no_grad():
        before = states_of(sources)
        copied(_copied(x), *context)
        drawn = any(change.moved for change in changes_of(before))
    return copied.eval() if drawn else module


def leaves(state: Tensor | Tensors, *, scaled: bool = True) -> tuple[Any, list[Tensor]]:
    """Return a copy of a state, and leaves that it is made of.

    With `scaled`, a tensor of an unusual size is a product with a leaf of size one, so
    that gradients are of size one too; see `unit_of`.
    """
    copies, inputs = [], []
    for tensor in as_tuple(state):
        leaf, unit = tensor.detach().clone(), unit_of(tensor) if scaled else 1.0
        if is_differentiable(tensor):
            inputs.append((leaf / unit).requires_grad_())
            leaf = inputs[-1] if unit == 1 else inputs[-1] * unit
        copies.append(leaf)
    return tuple(copies) if isinstance(state, tuple) else copies[0], inputs


def scalar(result: Any, method: str) -> Tensor:
    """Return a scalar function of all that a method returned."""
    if not method.endswith("_and_log_det"):
        return weighed(result)
    state, log_det = result
    loss: Tensor = weighed(state) + (log_det * log_det).sum()
    return loss


def assert_log_det(
    module: InvertibleModule,
    x: Tensor | Tensors,
    *context: Any,
    rtol: float | None = None,
) -> None:
    r"""Assert that log-determinants are those of the Jacobian, in both directions.

    The Jacobian $J$ of each sample is computed by autograd. If the output has more
    entries than the input, the determinant is that of $(J^\top J)^{1/2}$. Gradients of
    the log-determinant of the first sample are compared too, where autograd can
    differentiate the Jacobian. A module that draws random numbers is tried in
    evaluation mode.

    Args:
        module: The module.
        x: An input; each sample has at most 1,024 entries.
        context: Further arguments; tensors have the batch as their first axis.
        rtol: The error allowed, relative to the log-determinant or the number of
            entries, whichever is larger.

    Raises:
        AssertionError: If a log-determinant or its gradient is off, or it has another
            shape than `(batch,)`.
        ValueError: If a sample is too large.

    Examples:
        >>> from invtorch.testing import assert_log_det
        >>> assert_log_det(LU1x1(4), torch.randn(2, 4))
    """
    name, module = type(module).__name__, without_draws(module, x, context)
    certain = not _is_half(x)
    with torch.no_grad():
        y = module(x, *context)
    for direction, start in (("forward", x), ("inverse", y)):
        state, log_det = getattr(module, f"{direction}_and_log_det")(start, *context)
        function = getattr(module, direction)
        what = f"{name}.{direction}_and_log_det"
        plain, begin = as_tuple(function(start, *context)), as_tuple(start)
        same = f"{what}, the state"
        certain &= assert_states_close(same, as_tuple(state), plain, begin, rtol)
        _assert_one_for_each(what, log_det, len(begin[0]))
        for i in range(len(begin[0])):
            expected = _log_det_of_sample(function, start, context, i).item()
            # relative to the number of entries: a sum of as many logarithms near 0
            size = max(abs(expected), *(t[:1].numel() for t in begin), 1)
            error = abs(log_det[i].item() - expected) / size
            allowed = tolerance(log_det.dtype) if rtol is None else rtol
            if not error <= allowed:
                raise AssertionError(
                    f"{what}: sample {i} has a relative error of {error:.1e}, but at "
                    f"most {allowed:.1e} is allowed in {log_det.dtype}"
                )
        _assert_log_det_gradients(module, direction, start, context, rtol)
    if not certain:
        _in_double(assert_log_det, module, x, context)


def _assert_one_for_each(what: str, log_det: object, batch: int) -> None:
    """Assert that a log-determinant is one number for each sample."""
    if not isinstance(log_det, Tensor):
        raise AssertionError(
            f"{what} returned a log-determinant that is a {type(log_det).__name__}, "
            f"but should return a tensor of shape ({batch},)"
        )
    if log_det.shape != (batch,):
        raise AssertionError(
            f"{what} returned a log-determinant of shape {tuple(log_det.shape)}, "
            f"but should return one number for each sample, ({batch},)"
        )


def _assert_log_det_gradients(
    module: InvertibleModule,
    direction: str,
    start: Tensor | Tensors,
    context: tuple[Any, ...],
    rtol: float | None,
) -> None:
    """Assert that the log-determinant of the first sample has the right gradients."""
    if not len(as_tuple(start)[0]):
        return
    method = f"{direction}_and_log_det"
    first = tuple(t[:1] for t in as_tuple(start))
    state, inputs = leaves(first if isinstance(start, tuple) else first[0])
    own = _of_sample(context, 0)
    tensors = [c for c in own if isinstance(c, Tensor) and c.requires_grad]
    wanted = [*inputs, *tensors, *(p for p in module.parameters() if p.requires_grad)]
    log_det = getattr(module, method)(state, *own)[1]
    function = getattr(module, direction)
    with suppress(RuntimeError):  # an operation has no second derivative
        expected = _log_det_of_sample(function, state, own, 0, create_graph=True)
        references = _gradients_of(expected.sum(), wanted)
        found = _gradients_of(log_det.sum(), wanted)
        what = f"gradients of {type(module).__name__}.{method}, the log-determinant"
        assert_close_together(what, found, references, 1.0, rtol)


def _gradients_of(loss: Tensor, wanted: list[Tensor]) -> Tensors:
    """Return gradients; zeros if the loss has none."""
    if not (loss.requires_grad and wanted):
        return tuple(map(torch.zeros_like, wanted))
    return torch.autograd.grad(loss, wanted, materialize_grads=True)


def _of_sample(context: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    """Return the context of one sample; tensors without axes are that of all."""
    return tuple(
        c[i : i + 1] if isinstance(c, Tensor) and c.ndim else c for c in context
    )


def _log_det_of_sample(
    function: Any,
    start: Tensor | Tensors,
    context: tuple[Any, ...],
    i: int,
    create_graph: bool = False,
) -> Tensor:
    sample = [t[i : i + 1] for t in as_tuple(start)]
    sample = sample if create_graph else [t.detach() for t in sample]
    own = _of_sample(context, i)
    moving = [t for t in sample if is_differentiable(t)]  # integers have no derivative
    shapes, sizes = [t.shape for t in moving], [t.numel() for t in moving]
    if sum(sizes) > LARGEST_JACOBIAN:
        raise ValueError(
            f"a sample has {sum(sizes)} entries, but at most {LARGEST_JACOBIAN} make a "
            f"Jacobian: give a smaller input"
        )
    if not moving:
        return torch.zeros(())

    def flat(entries: Tensor) -> Tensor:
        parts = zip(entries.split(sizes), shapes, strict=True)
        shaped = iter([part.view(shape) for part, shape in parts])
        state = tuple(next(shaped) if is_differentiable(t) else t for t in sample)
        result = function(state if isinstance(start, tuple) else state[0], *own)
        ends = [t for t in as_tuple(result) if is_differentiable(t)]
        return torch.cat([t.flatten() for t in ends])

    entries = torch.cat([t.flatten() for t in moving])
    J = torch.autograd.functional.jacobian(flat, entries, create_graph=create_graph)
    J = J.cpu().to(torch.promote_types(J.dtype, torch.float64))
    if J.shape[0] > J.shape[1]:
        J = torch.linalg.cholesky(J.mT @ J)
    elif J.shape[0] < J.shape[1]:  # the inverse of such a map, on its image
        J = torch.linalg.cholesky(J @ J.mT)
    log_det: Tensor = torch.linalg.slogdet(J).logabsdet
    return log_det


def assert_memory_flat(
    module: InvertibleModule,
    x: Tensor | Tensors,
    *context: Any,
    depths: tuple[int, int] = (8, 32),
) -> None:
    """Assert that a deep network of this module takes the memory of one layer.

    The network has copies of the module and of its inverse in turn, so that any shape
    fits. Measured are the bytes that are kept after a forward pass, which must be equal
    at both depths, and the peak of a training step, which may differ by 5 %.

    Args:
        module: The module.
        x: An input.
        context: Further arguments.
        depths: Two numbers of layers, both even.

    Raises:
        AssertionError: If memory grows with depth.

    Examples:
        >>> from invtorch.testing import assert_memory_flat
        >>> assert_memory_flat(Householder1x1(4), torch.randn(64, 4))
    """
    kept, peaks = zip(*(_measured(module, x, context, n) for n in depths), strict=True)
    name = type(module).__name__
    if kept[0] != kept[1]:
        raise AssertionError(
            f"{depths[0]} layers of {name} keep {kept[0]:,} bytes after a forward pass "
            f"but {depths[1]} keep {kept[1]:,}: a layer keeps activations"
        )
    if peaks[1] > 1.05 * peaks[0]:
        raise AssertionError(
            f"a training step of {depths[0]} layers of {name} peaks at {peaks[0]:,} "
            f"bytes, but of {depths[1]} at {peaks[1]:,}"
        )


def _measured(
    module: InvertibleModule, x: Tensor | Tensors, context: tuple[Any, ...], depth: int
) -> tuple[int, int]:
    """Return the bytes kept after a forward pass, and the peak of a step."""
    copies = [copy.deepcopy(module) for _ in range(depth)]
    members = [m if i % 2 == 0 else m.inv for i, m in enumerate(copies)]
    net = InvertibleSequential(*members, anchors=0, guard=_guard(x))
    state, inputs = leaves(x, scaled=False)
    for tensor in (*inputs, *(p for p in net.parameters() if p.requires_grad)):
        tensor.grad = torch.zeros_like(tensor)

    def forward() -> Any:
        return net(state, *context)

    def step() -> None:
        weighed(forward()).backward()

    with warnings.catch_warnings():  # copies of one coupling change one half only
        warnings.filterwarnings("ignore", ".* pass through all .* layers unchanged")
        step()  # what is allocated once is not counted
    return measure_memory(forward).live, measure_memory(step).peak


class Same(VolumePreserving):
    """Returns the state that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.network = (
            nn.Identity()
        )  # the state after layers without one is not rebuilt

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """Return a copy."""
        return _copied(x)

    def inverse(self, y: Any, *_: Any, **__: Any) -> Any:
        """Return a copy."""
        return _copied(y)


def between_others(module: InvertibleModule, **options: Any) -> InvertibleSequential:
    """Return a container in which the input of a module is rebuilt in both directions.

    A container keeps its own input. Modules before and behind receive it.
    """
    return InvertibleSequential(Same(), module, Same(), **options)


def _copied(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(tensor.clone() for tensor in state)
    return state.clone()
