"""The linear algebra of channels: orthogonal matrices and 1×1 mixing."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from invtorch._checks import check_count
from invtorch.precision import no_autocast


def householder_product(vectors: Tensor, state: Tensor | None = None) -> Tensor:
    r"""Return the orthogonal matrix $U = H_1 H_2 \cdots H_R$.

    $$ H_r = I - 2\,v_r v_r^\top / (v_r^\top v_r), \qquad
       U = I - V S^{-1} V^\top $$

    with the $v_r$ as columns of $V$, and $S$ what lies above the diagonal of
    $V^\top V$, with half of its diagonal. Of complex vectors $U$ is unitary: $\top$
    then stands for the conjugate transpose.

    Args:
        vectors: The $v_r$ as rows, shape `(reflections, channels)`.
        state: What $U$ will be multiplied with: $U$ is orthogonal in its precision, if
            that is higher than the one of `vectors`.

    Returns:
        The matrix, shape `(channels, channels)`.

    Raises:
        ValueError: If the vectors are complex and the state is real.

    References:
        Joffrain et al., *Accumulating Householder transformations, revisited*, 2006.
    """
    if state is not None:
        if vectors.is_complex() and not state.is_complex():
            raise ValueError(
                "the reflections are complex, but the state is real: make the state "
                "complex, or the vectors real (`vectors.real`)"
            )
        dtype = state.real.dtype if state.is_complex() else state.dtype
        vectors = vectors.to(torch.promote_types(vectors.dtype, dtype))
    return Reflections.of(vectors).product().to(vectors.dtype)


def householder_vectors(channels: int, reflections: int) -> nn.Parameter:
    """Draw the normals of `reflections` hyperplanes in `channels` dimensions.

    Raises:
        TypeError: If one of them is no whole number.
        ValueError: If `reflections` is not between 1 and `channels`.
    """
    check_count("channels", channels)
    check_count("reflections", reflections)
    if not 1 <= reflections <= channels:
        raise ValueError(
            f"reflections is {reflections}, but must be between 1 and channels "
            f"({channels}): more reflections than channels add nothing"
        )
    return nn.Parameter(torch.randn(reflections, channels))


class Reflections(NamedTuple):
    r"""Householder reflections in the form $U = I - V W$ with $W = S^{-1} V^\top$.

    Attributes:
        V: The vectors as columns, shape `(channels, reflections)`, in double precision.
        S: What `householder_product` calls so.
        W: Shape `(reflections, channels)`.
    """

    V: Tensor
    S: Tensor
    W: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Self:
        """Take the vectors as rows, shape `(reflections, channels)`."""
        exact = torch.float32 if vectors.device.type == "mps" else torch.float64
        V = vectors.to(torch.promote_types(vectors.dtype, exact)).T  # never in TF32
        with no_autocast(V):
            S = _half_diagonal(V.mH @ V)
            return cls(V, S, torch.linalg.solve_triangular(S, V.mH, upper=True))

    def product(self) -> Tensor:
        """Return $U$."""
        with no_autocast(self.V):
            identity = torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)
            return identity - self.V @ self.W

    def gradient(self, left: Tensor, right: Tensor) -> Tensor:
        r"""Return the gradient of real vectors, given the one of $U$.

        With $B = -S^{-\top} V^\top \bar U$,

        $$ \bar V = B^\top - \bar U W^\top - V (M + M^\top), $$

        where $M$ is $B W^\top$ above the diagonal, with half of its diagonal.

        Args:
            left: $\bar U W^\top$, shape `(channels, reflections)`.
            right: $V^\top \bar U$, shape `(reflections, channels)`.

        Returns:
            Shape `(reflections, channels)`.
        """
        V, S, W = self
        B = -torch.linalg.solve_triangular(S.mT, right.to(V.dtype), upper=False)
        M = _half_diagonal((B @ W.mT).triu())
        of_V: Tensor = B.mT - left.to(V.dtype) - V @ (M + M.mT)
        return of_V.mT


def _half_diagonal(matrix: Tensor) -> Tensor:
    """Return a matrix with half of its diagonal; solving reads what lies above."""
    weights = torch.ones_like(matrix, requires_grad=False)
    return matrix * weights.fill_diagonal_(0.5)


def mix_channels(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply the channels at every position: `y[b, :, p] = matrix @ x[b, :, p]`.

    Args:
        matrix: Shape `(out, channels)`.
        x: Shape `(batch, channels, *space)`.

    Returns:
        Shape `(batch, out, *space)`, in the dtype of `x` also under autocast.
    """
    matrix = matrix.to(x.dtype)
    with no_autocast(x):
        if x.ndim == 2:
            return x @ matrix.T
        mixed = torch.bmm(matrix.expand(len(x), *matrix.shape), _flat(x))
    return mixed.reshape(len(x), len(matrix), *x.shape[2:])


def correlate_channels(a: Tensor, b: Tensor) -> Tensor:
    """Sum `a[n, i, p] * conj(b[n, j, p])` over samples and positions.

    This is the gradient of `mix_channels` with respect to its matrix.

    Args:
        a: Shape `(batch, rows, *space)`.
        b: Shape `(batch, columns, *space)`.

    Returns:
        Shape `(rows, columns)`.
    """
    with no_autocast(a):
        if a.ndim == 2:
            return a.T @ b.conj()
        each = torch.bmm(_flat(a), _flat(b).mH)
        return each[0] if len(each) == 1 else each.sum(0)


def _flat(x: Tensor) -> Tensor:
    """Join the spatial axes; unlike `flatten` this knows `is_grads_batched`."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
