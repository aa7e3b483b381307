"""Additive and orthogonal couplings in closed form."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from invtorch._checks import check_returned
from invtorch.closed_form.protocol import Function, Gradients, ShiftPullBack
from invtorch.closed_form.registry import closed_form, register
from invtorch.couplings import AdditiveCoupling, OrthogonalCoupling
from invtorch.couplings.conditioning import split_state
from invtorch.linalg import (
    Reflections,
    correlate_channels,
    householder_product,
    mix_channels,
)

FEW = 4  # reflections: of more that are nearly equal the factors would be large


class OrthogonalShift(NamedTuple):
    r"""The shift $U_2^\top G(U_1 x)$ of an orthogonal coupling.

    With $\bar s = \pm U_2 \bar y$ and $\bar k$ what it becomes on its way back through
    $G$,

    $$ \bar x = \bar y + U_1^\top \bar k, \qquad \bar U_1 = \bar k\, x^\top, \qquad
       \bar U_2 = \pm G(U_1 x)\, \bar y^\top. $$

    Attributes:
        vectors: The normals of the reflections of which $U$ is the product.
        conditioner: The network $G$.
        name: What errors call it.
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
        """Return the same and its derivative."""
        reflections = Reflections.of(self.vectors)
        U1, U2 = _halves(reflections.product().to(state.dtype))
        shift, pull_shift = self.conditioner.with_pull_back(mix_channels(U1, state))
        _check(self.name, shift, state)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            of_U2 = sign * correlate_channels(last.pop(), grad)
            of_kept = pull_shift(_signed(mix_channels(U2, grad), sign), into)
            if into.needs(self.vectors):
                of_U = torch.cat([correlate_channels(of_kept, x), of_U2])
                of_U = of_U.to(reflections.V.dtype)
                left, right = of_U @ reflections.W.mT, reflections.V.mT @ of_U
                into.add(self.vectors, reflections.gradient(left, right).to(grad.dtype))
            return grad + mix_channels(U1.mT, of_kept)

        moved, last = mix_channels(U2.mT, shift), [shift]
        return torch.add(state, moved, alpha=sign, out=moved), pull


class ReflectedShift(NamedTuple):
    r"""The same shift, $U = I - V W$ never made: two thin products in place of one.

    With $V$ split in halves as the rows of $U$ are,

    $$ U_1 x = x_1 - V_1 W x, \qquad U_2^\top s = (0, s) - W^\top V_2^\top s, $$

    $$ \bar U W^\top = \bigl(\bar k\, (Wx)^\top,\; \pm s\, (W\bar y)^\top\bigr), \qquad
       V^\top \bar U = V_1^\top \bar k\, x^\top \pm V_2^\top s\, \bar y^\top. $$

    On a CPU this is faster for few reflections of many channels. On a GPU it moves more
    memory than the product with $U$.
    """

    vectors: Tensor
    conditioner: Function
    name: str

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shift added or subtracted."""
        V1, V2, W = self._factors(Reflections.of(self.vectors), state)
        x1, _ = _halves(state, 1)
        shift = self.conditioner(_less(x1, V1, mix_channels(W, state)))
        _check(self.name, shift, state)
        return self._lifted(state, shift, mix_channels(V2.mT, shift), W, sign)

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        """Return the same and its derivative."""
        reflections = Reflections.of(self.vectors)
        V1, V2, W = self._factors(reflections, state)
        x1, _ = _halves(state, 1)
        shift, pull_shift = self.conditioner.with_pull_back(
            _less(x1, V1, mix_channels(W, state))  # nothing else refers to it
        )
        _check(self.name, shift, state)
        thin, last = mix_channels(V2.mT, shift), [shift]

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            Wg, (_, grad2) = mix_channels(W, grad), _halves(grad, 1)
            lower = correlate_channels(last.pop(), Wg)
            of_kept = pull_shift(_signed(_less(grad2, V2, Wg), sign), into)
            Vk = mix_channels(V1.mT, of_kept)
            if into.needs(self.vectors):
                upper = correlate_channels(of_kept, mix_channels(W, x))
                left = torch.cat([upper, sign * lower])
                right = correlate_channels(Vk, x)
                right += sign * correlate_channels(thin, grad)
                into.add(self.vectors, reflections.gradient(left, right).to(grad.dtype))
            of_x = _less(grad, W.mT, Vk)
            of_x[:, : of_kept.shape[1]] += of_kept
            return of_x

        return self._lifted(state, shift, thin, W, sign), pull

    def _factors(self, reflections: Reflections, state: Tensor) -> tuple[Tensor, ...]:
        V, W = reflections.V.to(state.dtype), reflections.W.to(state.dtype)
        return *_halves(V), W

    def _lifted(
        self, state: Tensor, shift: Tensor, thin: Tensor, W: Tensor, sign: int
    ) -> Tensor:
        lifted = _less(state, W.mT, thin, sign)
        lifted[:, -shift.shape[1] :].add_(shift, alpha=sign)
        return lifted


Orthogonal: TypeAlias = OrthogonalShift | ReflectedShift


@register(OrthogonalCoupling)
def orthogonal(layer: OrthogonalCoupling, state: Tensor) -> Orthogonal | None:
    """Return a layer in closed form, if its conditioner has one."""
    conditioner = _conditioner(layer, state)
    if conditioner is None or state.ndim < 2:
        return None
    if state.shape[1] != layer.vectors.shape[1]:
        return None
    return orthogonal_shift(
        layer.vectors, conditioner, type(layer.conditioner).__name__
    )


@register(AdditiveCoupling)
def additive(layer: AdditiveCoupling, state: Tensor) -> AdditiveShift | None:
    """Return a layer in closed form, if its conditioner has one."""
    conditioner = _conditioner(layer, state)
    if conditioner is None or layer.grid:
        return None
    name = type(layer.conditioner).__name__
    return AdditiveShift(conditioner, layer.split, layer.dim, name)


def _conditioner(
    layer: AdditiveCoupling | OrthogonalCoupling, state: Tensor
) -> Function | None:
    if is_parametrized(layer):
        return None
    conditioner: Function | None = closed_form(layer.conditioner, state)
    return conditioner


def orthogonal_shift(vectors: Tensor, conditioner: Function, name: str) -> Orthogonal:
    """Return the shift in the form that is faster on the device of the vectors."""
    reflections, channels = vectors.shape
    few = reflections <= FEW and 8 * reflections <= channels
    kind = ReflectedShift if few and vectors.device.type == "cpu" else OrthogonalShift
    return kind(vectors, conditioner, name)


class AdditiveShift(NamedTuple):
    r"""The shift $(0, G(x_1))$ of an additive coupling.

    $\bar x = \bar y + (\bar k, 0)$, where $\bar k$ is what $\pm\bar y_2$ becomes on its
    way back through $G$.

    Attributes:
        conditioner: The network $G$.
        split: The number of entries in $x_1$, or half of them.
        dim: The axis that is split.
        name: What errors call it.
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
        """Return the same and its derivative."""
        other = state.clone()
        kept, moved = split_state(other, self.split, self.dim)
        shift, pull_shift = self.conditioner.with_pull_back(kept)
        check_returned(self.name, shift, tuple(moved.shape), moved)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            del x  # the derivative does not depend on what is shifted
            kept, moved = split_state(grad, self.split, self.dim)
            of_kept = pull_shift(_signed(moved, sign), into)
            return torch.cat([kept + of_kept, moved], self.dim)

        moved.add_(shift, alpha=sign)
        return other, pull


def _halves(tensor: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    first, second = tensor.tensor_split((tensor.shape[dim] // 2,), dim)
    return first, second


def _signed(tensor: Tensor, sign: int) -> Tensor:
    return tensor if sign > 0 else -tensor


def _less(x: Tensor, columns: Tensor, rows: Tensor, sign: int = 1) -> Tensor:
    """Return `x` less (or plus) a product of few columns and rows, one by one.

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
