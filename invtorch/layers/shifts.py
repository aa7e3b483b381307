"""Couplings as pure functions, their derivatives written by hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invtorch.functional import (
    correlate_channels,
    householder_product,
    householder_with_pullback,
    mix_channels,
)
from invtorch.layers.fitting import check_returned, parts
from invtorch.pure import Gradients, PureFunction, ShiftPullback


class OrthogonalShift(NamedTuple):
    r"""The shift $U_2^\top G(U_1 x)$ of an orthogonal coupling.

    With $\bar g = \pm U_2 \bar y$ and $\bar k$ what it becomes on its way back through
    $G$,

    $$ \bar x = \bar y + U_1^\top \bar k, \qquad \bar U_1 = \bar k\, x^\top, \qquad
       \bar U_2 = \pm G(U_1 x)\, \bar y^\top. $$

    Attributes:
        vectors: The normals of the reflections of which $U$ is the product.
        conditioner: The network $G$.
        name: What errors call it.
    """

    vectors: Tensor
    conditioner: PureFunction
    name: str

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shift added or subtracted."""
        U1, U2 = self._rows(householder_product(self.vectors))
        shift = self.conditioner(mix_channels(U1, state))
        self._check(shift, state)
        return torch.add(state, mix_channels(U2.mT, shift), alpha=sign)

    def with_pullback(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullback]:
        """Return the same and its derivative."""
        U, pull_vectors = householder_with_pullback(self.vectors)
        U1, U2 = self._rows(U)
        shift, pull_shift = self.conditioner.with_pullback(mix_channels(U1, state))
        self._check(shift, state)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            moved = grad if sign > 0 else -grad
            of_U2 = correlate_channels(shift, moved)
            of_kept = pull_shift(mix_channels(U2, moved), into)
            of_U1 = correlate_channels(of_kept, x)
            into.add(self.vectors, pull_vectors(torch.cat([of_U1, of_U2])))
            return grad + mix_channels(U1.mT, of_kept)

        moved = mix_channels(U2.mT, shift)
        return torch.add(state, moved, alpha=sign, out=moved), pull

    def _rows(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        first, second = matrix.tensor_split((len(matrix) // 2,))
        return first, second

    def _check(self, shift: Tensor, state: Tensor) -> None:
        channels = state.shape[1]
        wanted = (len(state), channels - channels // 2, *state.shape[2:])
        check_returned(self.name, shift, wanted, state)


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

    conditioner: PureFunction
    split: int | None
    dim: int
    name: str

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        """Return the state with the shift added or subtracted."""
        kept, moved = parts(state, self.split, self.dim)
        shift = self.conditioner(kept)
        check_returned(self.name, shift, tuple(moved.shape), moved)
        return torch.cat([kept, torch.add(moved, shift, alpha=sign)], self.dim)

    def with_pullback(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullback]:
        """Return the same and its derivative."""
        other = state.clone()
        kept, moved = parts(other, self.split, self.dim)
        shift, pull_shift = self.conditioner.with_pullback(kept)
        check_returned(self.name, shift, tuple(moved.shape), moved)

        def pull(grad: Tensor, x: Tensor, sign: int, into: Gradients) -> Tensor:
            del x  # the derivative does not depend on what is shifted
            kept, moved = parts(grad, self.split, self.dim)
            of_kept = pull_shift(moved if sign > 0 else -moved, into)
            return torch.cat([kept + of_kept, moved], self.dim)

        moved.add_(shift, alpha=sign)
        return other, pull
