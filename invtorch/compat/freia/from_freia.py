"""A module of FrEIA as an invertible module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from invtorch import InvertibleModule
from invtorch._checks import check_module
from invtorch.compat.freia import conventions
from invtorch.compat.freia.conventions import (
    named,
    shapes_of,
    shapes_without_batch,
)
from invtorch.recording import nodes_ignored

LEAST_DIFFERENCE = 0.1  # of log-determinants with other signs; rounding is far below


class FromFreia(InvertibleModule):
    r"""Use a module of FrEIA 0.2 as an invertible module, such as a coupling block.

    `forward` calls it with `rev=False`, `inverse` with `rev=True`. The context is its
    conditions, in the order of `dims_c`; a module without conditions ignores the
    context. In a container, activations are rebuilt as for any other layer.

    FrEIA returns log-determinants as numbers, as tensors of one number, or as one per
    sample. All become one per sample. Of modules that are not FrEIA's own, the
    log-determinants of both directions are compared at the first calls: their signs
    must differ. That the number itself is right is what
    `invtorch.testing.assert_log_det` shows.

    Args:
        module: A module of FrEIA, a `SequenceINN`, a `GraphINN`, or an own module with
            their conventions.
        conditions: Which tensors of the context are its conditions, by their indices;
            by default all.

    Shape:
        The shapes of `dims_in` with a batch axis in front, one tensor or a tuple; the
        output has the shapes of `output_dims(dims_in)`.

    Raises:
        TypeError: If it has not the attributes and arguments of such a module.
        ValueError: If its reverse is known to be no inverse, or the shapes differ from
            `dims_in`.
        RuntimeError: If it returns something else than the conventions say, or would
            initialize itself in its next call.

    Examples:
        >>> from invtorch.compat.freia import FromFreia
        >>> class Double(nn.Module):  # with the conventions of FrEIA
        ...     dims_in, dims_c = [(3,)], []
        ...     def forward(self, x, c=None, rev=False, jac=True):
        ...         factor = 0.5 if rev else 2.0
        ...         return [factor * x[0]], 3 * torch.tensor(factor).log()
        ...     def output_dims(self, dims):
        ...         return dims
        >>> y, log_det = FromFreia(Double()).forward_and_log_det(torch.ones(2, 3))
        >>> y[0]
        tensor([2., 2., 2.])
        >>> log_det
        tensor([2.0794, 2.0794])

    References:
        Ardizzone et al., *Framework for easily invertible architectures*, 2018.
    """

    def __init__(
        self, module: nn.Module, conditions: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        check_module("module", module)
        conventions.check_conventions(module)
        self.module = module
        self.conditions = conditions
        self._name = type(module).__name__
        self._dims_c = shapes_of(getattr(module, "dims_c", None) or [])
        self._condition_count = conventions.condition_count(module)
        self._container = conventions.has_inner(module)
        self._writes = any(named(module, conventions.WRITES_INPUT))
        self._wrong_reverse = any(named(module, conventions.WRONG_REVERSE))
        self._sums = any(named(module, conventions.NOT_SUMMED)) and not self._container
        self._orthogonal = [*named(module, conventions.NEARLY_ORTHOGONAL)]
        self._initializing = conventions.initializing(module)
        # whether both log-determinants are known to agree; those of FrEIA itself are
        self._checked = not conventions.has_own(module)

    def forward(self, x: Any, *context: Any) -> Any:
        """Call the module."""
        return _state(self._evaluate(x, context, rev=False, jac=False)[0])

    def inverse(self, y: Any, *context: Any) -> Any:
        """Call the module in reverse."""
        return _state(self._evaluate(y, context, rev=True, jac=False)[0])

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        """Call the module, with its log-determinant."""
        return self._with_log_det(x, context, rev=False)

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        """Call the module in reverse, with its log-determinant."""
        return self._with_log_det(y, context, rev=True)

    def extra_repr(self) -> str:
        """Show which tensors of the context are conditions, if not all."""
        return "" if self.conditions is None else f"conditions={self.conditions}"

    def _with_log_det(
        self, state: Any, context: tuple[Any, ...], rev: bool
    ) -> tuple[Any, Tensor]:
        if not self._checked and not torch.compiler.is_compiling():
            self._check_directions(state, context, rev)
        tensors, log_det = self._log_det(state, context, rev)
        return _state(tensors), log_det

    def _log_det(
        self, state: Any, context: tuple[Any, ...], rev: bool
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        if rev and self._wrong_reverse:
            tensors, _ = self._evaluate(state, context, rev=True, jac=False)
            there = self._evaluate(_state(tensors), context, rev=False, jac=True)
            return tensors, -self._summed(there[1], tensors[0])
        tensors, value = self._evaluate(state, context, rev=rev, jac=True)
        return tensors, self._summed(value, tensors[0])

    def _summed(self, value: Any, state: Tensor) -> Tensor:
        return conventions.log_det_of(self._name, value, state, self._sums)

    def _evaluate(
        self, state: Any, context: tuple[Any, ...], *, rev: bool, jac: bool
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Call the module; return its tensors, and what it returns beside them."""
        self._check_ready()
        given = conventions.tensors_of(self._name, state)
        if self._writes:
            given = tuple(t.clone() for t in given)
        shapes = shapes_without_batch(given)
        sizes = [*map(len, given)], sum(t.numel() for t in given)
        jac = jac or self._container  # SequenceINN adds what is returned without
        result = self.module(given, rev=rev, jac=jac, **self._conditions(context))
        match result:
            case [tensors, value]:
                pass
            case [tensors] if not jac:  # as InvertibleSigmoid does
                value = None
            case _:
                raise RuntimeError(
                    f"{self._name} returned {type(result).__name__}, but must return a "
                    f"tuple of tensors and the log-determinant: (tensors, jac)"
                )
        tensors = conventions.tensors_of(self._name, tensors)
        self._check_result(tensors, shapes, sizes)
        return tensors, value

    def _conditions(self, context: tuple[Any, ...]) -> dict[str, list[Any]]:
        """Return the argument `c`, if the module has conditions.

        Raises:
            ValueError: If their number or shapes are not those of the module.
        """
        dims, count = self._dims_c, self._condition_count
        if not count:
            return {}
        chosen = [*context]
        if self.conditions is not None:
            chosen = [context[i] for i in self.conditions if i < len(context)]
        if len(chosen) != count:
            raise ValueError(
                f"{self._name} has {count} conditions, but gets {len(chosen)} of the "
                f"context: choose with `conditions=`"
            )
        if dims:
            given = shapes_without_batch(chosen)
            conventions.check_shapes(self._name, given, dims, "conditions")
        return {"c": chosen}

    def _check_ready(self) -> None:
        """Refuse a module that sets parameters in its call, or must be corrected.

        Raises:
            RuntimeError: If it does.
        """
        for inner in self._initializing:
            if inner.init_on_next_batch:
                raise RuntimeError(
                    f"{type(inner).__name__} of FrEIA sets its parameters in its next "
                    f"call: call it on a batch before, or load a state_dict"
                )
        for inner in self._orthogonal:
            _check_orthogonal(inner)

    def _check_result(
        self,
        tensors: tuple[Tensor, ...],
        shapes: list[tuple[int, ...]],
        sizes: tuple[list[int], int],
    ) -> None:
        """Refuse an output that cannot be that of a bijection of `dims_in`.

        Raises:
            RuntimeError: If it has another number of entries or samples.
            ValueError: If neither input nor output has the shapes of `dims_in`.
        """
        batch, entries = sizes
        samples, found = {*map(len, tensors)}, sum(t.numel() for t in tensors)
        if (samples, found) != ({*batch}, entries):
            made = shapes_without_batch(tensors)
            raise RuntimeError(
                f"{self._name} made {made} of {shapes}, which has another number of "
                f"entries or samples: it drops some, and has no inverse"
            )
        made_for = shapes_of(self.module.dims_in)  # type: ignore[arg-type]
        if made_for != shapes_without_batch(tensors):  # upsampling keeps that one
            conventions.check_shapes(self._name, shapes, made_for, "tensors")

    def _check_directions(
        self, state: Any, context: tuple[Any, ...], rev: bool
    ) -> None:
        """Compare the log-determinants of both directions, until they are not zero.

        It is evaluated in `eval` mode: networks that draw, or count, do neither.

        Raises:
            RuntimeError: If they do not cancel.
        """
        tensors = conventions.tensors_of(self._name, state)
        if not len(tensors[0]):  # nothing can be compared
            return
        with nodes_ignored(), _evaluating(self.module), torch.enable_grad():
            leaves = tuple(t.detach().clone().requires_grad_() for t in tensors)
            there, log_det = self._log_det(_state(leaves), context, rev)
            back = tuple(t.detach() for t in there)
            _, reverse = self._log_det(_state(back), context, not rev)
            varies = log_det.requires_grad or reverse.requires_grad
        entries = sum(t[0].numel() for t in tensors)
        least = torch.finfo(log_det.dtype).eps ** 0.5 * entries
        size = torch.maximum(log_det.abs(), reverse.abs()).detach()
        wrong = (log_det + reverse).abs() > LEAST_DIFFERENCE * size
        if (wrong & (size > least)).any():
            i = int((wrong & (size > least)).int().argmax())
            raise RuntimeError(
                f"the log-determinants of {self._name} and of its reverse are "
                f"{log_det[i].item():.3g} and {reverse[i].item():.3g}, but must have "
                f"other signs and the same size"
            )
        self._checked = bool((size > least).any()) or not varies


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Return a context in which the module is in `eval` mode."""
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training


def _check_orthogonal(module: Any) -> None:
    """Refuse a matrix that should be orthogonal, and is not after it was learned.

    Raises:
        RuntimeError: If it is not.
    """
    weights = module.weights.detach()
    identity = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    error = (weights @ weights.T - identity).abs().max().item()
    if error > torch.finfo(weights.dtype).eps ** 0.5:
        raise RuntimeError(
            f"the matrix of {type(module).__name__} is off by {error:.1e} from an "
            f"orthogonal one, so that it has another inverse: use "
            f"invtorch.Orthogonal1x1"
        )


def _state(tensors: tuple[Tensor, ...]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors
