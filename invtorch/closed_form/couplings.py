"""Additive and orthogonal couplings, and reversible blocks, in closed form."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from invtorch._checks import check_returned
from invtorch.closed_form.protocol import (
    Function,
    Gradients,
    PullBack,
    ShiftPullBack,
)
from invtorch.closed_form.registry import closed_form, register
from invtorch.couplings import (
    AdditiveCoupling,
    OrthogonalCoupling,
    ReversibleBlock,
)
from invtorch.couplings.conditioning import split_state
from invtorch.couplings.orthogonal import HOUSEHOLDER
from invtorch.couplings.partition import keeps_first
from invtorch.linalg import (
    Reflections,
    correlate_channels,
    householder_product,
    mix_channels,
)

# The most reflections for which `ReflectedShift` is used. With more of them, vectors
# that are nearly parallel make the entries of $W$ large, and with them rounding errors.
FEW = 4


class OrthogonalShift(NamedTuple):
    r"""The shift $U_2^\top G(U_1 x)$ of an orthogonal coupling.

    With $\bar s = \pm U_2 \bar y$ the gradient of the output of $G$, and $\bar k$ the
    gradient of its input,

    $$ \bar x = \bar y + U_1^\top \bar k, \qquad \bar U_1 = \bar k\, x^\top, \qquad
       \bar U_2 = \pm G(U_1 x)\, \bar y^\top. $$

    Attributes:
        vectors: The vectors of the Householder reflections whose product is $U$.
        conditioner: The network $G$.
        name: The name of the conditioner in error messages.
    """

    vectors: Tensor
    conditioner: Function
    name: str

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shift added or subtracted."""
        U1, U2 = _halves(householder_product(self.vectors))
        shift = self.conditioner(mix_channels(U1, state))
        _check(self.name, shift, state)
        return torch.add(state, mix_channels(U2.mT, shift), alpha=sign)

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        """Return the same and a function that computes the derivative."""
        reflections = Reflections.of(self.vectors)
        U1, U2 = _halves(reflections.product().to(state.dtype))
        shift, pull_shift = self.conditioner.with_pull_back(mix_channels(U1, state))
        _check(self.name, shift, state)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            grad_U2 = sign * correlate_channels(saved.pop(), grad)
            grad_kept = pull_shift(_signed(mix_channels(U2, grad), sign), into)
            if into.needs(self.vectors):
                grad_U = torch.cat([correlate_channels(grad_kept, x), grad_U2])
                grad_U = grad_U.to(reflections.V.dtype)
                left, right = grad_U @ reflections.W.mT, reflections.V.mT @ grad_U
                into.add(self.vectors, reflections.gradient(left, right).to(grad.dtype))
            return grad + mix_channels(U1.mT, grad_kept)

        moved, saved = mix_channels(U2.mT, shift), [shift]
        return torch.add(state, moved, alpha=sign, out=moved), pull


class ReflectedShift(NamedTuple):
    r"""The same shift, computed from the factors of $U = I - V W$ instead of $U$.

    $V_1$ and $V_2$ are the two halves of the rows of $V$:

    $$ U_1 x = x_1 - V_1 W x, \qquad U_2^\top s = (0, s) - W^\top V_2^\top s, $$

    $$ \bar U W^\top = \bigl(\bar k\, (Wx)^\top,\; \pm s\, (W\bar y)^\top\bigr), \qquad
       V^\top \bar U = V_1^\top \bar k\, x^\top \pm V_2^\top s\, \bar y^\top. $$

    On a CPU this is faster if there are few reflections and many channels. On a GPU it
    reads and writes more memory than the product with $U$.
    """

    vectors: Tensor
    conditioner: Function
    name: str

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shift added or subtracted."""
        V1, V2, W = self._factors(Reflections.of(self.vectors), state)
        x1, _ = _halves(state, 1)
        shift = self.conditioner(_minus_product(x1, V1, mix_channels(W, state)))
        _check(self.name, shift, state)
        return self._add_shift(state, shift, mix_channels(V2.mT, shift), W, sign)

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        """Return the same and a function that computes the derivative."""
        reflections = Reflections.of(self.vectors)
        V1, V2, W = self._factors(reflections, state)
        x1, _ = _halves(state, 1)
        shift, pull_shift = self.conditioner.with_pull_back(
            _minus_product(x1, V1, mix_channels(W, state))  # not assigned: freed early
        )
        _check(self.name, shift, state)
        V2_shift, saved = mix_channels(V2.mT, shift), [shift]

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            Wg, (_, grad2) = mix_channels(W, grad), _halves(grad, 1)
            lower = correlate_channels(saved.pop(), Wg)
            grad_kept = pull_shift(_signed(_minus_product(grad2, V2, Wg), sign), into)
            Vk = mix_channels(V1.mT, grad_kept)
            if into.needs(self.vectors):
                upper = correlate_channels(grad_kept, mix_channels(W, x))
                left = torch.cat([upper, sign * lower])
                right = correlate_channels(Vk, x)
                right += sign * correlate_channels(V2_shift, grad)
                into.add(self.vectors, reflections.gradient(left, right).to(grad.dtype))
            grad_x = _minus_product(grad, W.mT, Vk)
            grad_x[:, : grad_kept.shape[1]] += grad_kept
            return grad_x

        return self._add_shift(state, shift, V2_shift, W, sign), pull

    def _factors(self, reflections: Reflections, state: Tensor) -> tuple[Tensor, ...]:
        V, W = reflections.V.to(state.dtype), reflections.W.to(state.dtype)
        return *_halves(V), W

    def _add_shift(
        self, state: Tensor, shift: Tensor, V2_shift: Tensor, W: Tensor, sign: int
    ) -> Tensor:
        shifted_state = _minus_product(state, W.mT, V2_shift, sign)
        shifted_state[:, -shift.shape[1] :].add_(shift, alpha=sign)
        return shifted_state


Orthogonal: TypeAlias = OrthogonalShift | ReflectedShift


@register(OrthogonalCoupling, parameters=["vectors"], submodules=["conditioner"])
def orthogonal(layer: OrthogonalCoupling, state: Tensor) -> Orthogonal | None:
    """Return the closed form of a layer, if its conditioner has one."""
    conditioner = _network(layer, layer.conditioner, state)
    if conditioner is None or state.ndim < 2:
        return None
    if layer.map != HOUSEHOLDER or layer.dim != 1:
        return None
    if state.shape[1] != layer.channels:
        return None
    return orthogonal_shift(
        layer.vectors, conditioner, type(layer.conditioner).__name__
    )


@register(AdditiveCoupling, submodules=["conditioner"])
def additive(layer: AdditiveCoupling, state: Tensor) -> AdditiveShift | None:
    """Return the closed form of a layer, if its conditioner has one."""
    conditioner = _network(layer, layer.conditioner, state)
    if conditioner is None or layer.grid or not keeps_first(layer):
        return None
    name, split = type(layer.conditioner).__name__, layer.split
    assert split is None or isinstance(split, int)
    return AdditiveShift(conditioner, split, layer.dim, name)


@register(ReversibleBlock, submodules=["f", "g"])
def reversible(layer: ReversibleBlock, state: Tensor) -> TwoShifts | None:
    """Return the closed form of a layer, if both of its networks have one."""
    f, g = (_network(layer, network, state) for network in (layer.f, layer.g))
    if f is None or g is None or not keeps_first(layer):
        return None
    names, split = (type(layer.f).__name__, type(layer.g).__name__), layer.split
    assert split is None or isinstance(split, int)
    return TwoShifts(f, g, split, layer.dim, names)


def _network(layer: nn.Module, network: nn.Module, state: Tensor) -> Function | None:
    """Return the closed form of a network of a layer."""
    if is_parametrized(layer):
        return None
    function: Function | None = closed_form(network, state)
    return function


def orthogonal_shift(vectors: Tensor, conditioner: Function, name: str) -> Orthogonal:
    """Return the form of the shift that is faster on the device of the vectors."""
    reflections, channels = vectors.shape
    # here, "many channels" means at least 8 per reflection
    few = reflections <= FEW and 8 * reflections <= channels
    kind = ReflectedShift if few and vectors.device.type == "cpu" else OrthogonalShift
    return kind(vectors, conditioner, name)


class AdditiveShift(NamedTuple):
    r"""The shift $(0, G(x_1))$ of an additive coupling.

    $\bar x = \bar y + (\bar k, 0)$, where $\bar k$ is the gradient of the input of $G$,
    given the gradient $\pm\bar y_2$ of its output.

    Attributes:
        conditioner: The network $G$.
        split: The number of entries in $x_1$, or `None` for half of them.
        dim: The axis that is split.
        name: The name of the conditioner in error messages.
    """

    conditioner: Function
    split: int | None
    dim: int
    name: str

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shift added or subtracted."""
        kept, moved = split_state(state, self.split, self.dim)
        shift = self.conditioner(kept)
        check_returned(self.name, shift, tuple(moved.shape), moved)
        return torch.cat([kept, torch.add(moved, shift, alpha=sign)], self.dim)

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        """Return the same and a function that computes the derivative."""
        output = state.clone()
        kept, moved = split_state(output, self.split, self.dim)
        shift, pull_shift = self.conditioner.with_pull_back(kept)
        check_returned(self.name, shift, tuple(moved.shape), moved)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            del x  # the derivative needs only the values saved by the conditioner
            kept, moved = split_state(grad, self.split, self.dim)
            grad_kept = pull_shift(_signed(moved, sign), into)
            return torch.cat([kept + grad_kept, moved], self.dim)

        moved.add_(shift, alpha=sign)
        return output, pull


class TwoShifts(NamedTuple):
    r"""The shifts $y_1 = x_1 + f(x_2)$ and $y_2 = x_2 + g(y_1)$ of a reversible block.

    In the forward direction, with $J$ the derivative of each network at its input,

    $$ \bar x_1 = \bar y_1 + J_g^\top \bar y_2, \qquad
       \bar x_2 = \bar y_2 + J_f^\top \bar x_1. $$

    The inverse subtracts the shifts in reverse order, and so does its derivative.

    Attributes:
        f: The network that shifts the first part.
        g: The network that shifts the second part.
        split: The number of entries of the first part, or `None` for half of them.
        dim: The axis that is split.
        names: The names of both networks in error messages.
    """

    f: Function
    g: Function
    split: int | None
    dim: int
    names: tuple[str, str]

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shifts added, or subtracted in reverse order."""
        parts = [*split_state(state, self.split, self.dim)]
        for moved in _order(sign):
            shift = (self.f, self.g)[moved](parts[1 - moved])
            self._check(moved, shift, parts[moved])
            parts[moved] = torch.add(parts[moved], shift, alpha=sign)
        return torch.cat(parts, self.dim)

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        """Return the same and a function that computes the derivative."""
        output = state.clone()
        parts = split_state(output, self.split, self.dim)
        pulls: dict[int, PullBack] = {}
        first, second = _order(sign)
        for moved in first, second:
            kept = parts[1 - moved]
            if moved == first:  # the second shift changes this part of the output
                kept = kept.clone()
            shift, pulls[moved] = (self.f, self.g)[moved].with_pull_back(kept)
            self._check(moved, shift, parts[moved])
            parts[moved].add_(shift, alpha=sign)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            del x  # the derivative needs only the values saved by the networks
            grads = [*split_state(grad, self.split, self.dim)]
            for moved in reversed(_order(sign)):
                of_kept = pulls.pop(moved)(_signed(grads[moved], sign), into)
                grads[1 - moved] = grads[1 - moved] + of_kept
            return torch.cat(grads, self.dim)

        return output, pull

    def _check(self, moved: int, shift: Tensor, part: Tensor) -> None:
        check_returned(self.names[moved], shift, tuple(part.shape), part)


def _order(sign: int) -> tuple[int, int]:
    """Return which part moves first, and which one second."""
    return (0, 1) if sign > 0 else (1, 0)


def _halves(tensor: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    first, second = tensor.tensor_split((tensor.shape[dim] // 2,), dim)
    return first, second


def _signed(tensor: Tensor, sign: int) -> Tensor:
    return tensor if sign > 0 else -tensor


def _minus_product(x: Tensor, columns: Tensor, rows: Tensor, sign: int = 1) -> Tensor:
    """Subtract a product of few columns and rows from `x`, or add it if `sign` is -1.

    The products of one column and one row are subtracted one by one.

    Args:
        x: Shape `(batch, n, *space)`.
        columns: Shape `(n, few)`.
        rows: Shape `(batch, few, *space)`.
        sign: 1 or -1.
    """
    shaped = columns.T.reshape(*columns.T.shape, *[1] * (x.ndim - 2))
    first, *others = range(len(shaped))
    result = torch.addcmul(x, shaped[first], rows[:, :1], value=-sign)
    for r in others:
        result.addcmul_(shaped[r], rows[:, r : r + 1], value=-sign)
    return result


def _check(name: str, shift: Tensor, state: Tensor) -> None:
    channels = state.shape[1]
    shape = (len(state), channels - channels // 2, *state.shape[2:])
    check_returned(name, shift, shape, state)
