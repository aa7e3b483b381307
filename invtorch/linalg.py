"""Linear algebra on channels: orthogonal matrices, and products with matrices."""

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

    The $v_r$ are the columns of $V$. $S$ is the upper triangle of $V^\top V$ with its
    diagonal halved. If the vectors are complex, $U$ is unitary, and $\top$ is the
    conjugate transpose.

    Args:
        vectors: The $v_r$ as rows, shape `(reflections, channels)`.
        state: The tensor that $U$ will be multiplied with. If its precision is higher
            than that of `vectors`, $U$ has the precision of `state`.

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
    """Draw random vectors for `householder_product`.

    Raises:
        TypeError: If `channels` or `reflections` is not an integer.
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
        V: The vectors as columns, shape `(channels, reflections)`, in double precision
            (single precision on MPS, which has no double precision).
        S: The matrix $S$ of `householder_product`. Its lower triangle is not used.
        W: Shape `(reflections, channels)`.
    """

    V: Tensor
    S: Tensor
    W: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Self:
        """Compute the factors from vectors of shape `(reflections, channels)`."""
        precise = torch.float32 if vectors.device.type == "mps" else torch.float64
        V = vectors.to(torch.promote_types(vectors.dtype, precise)).T  # never in TF32
        with no_autocast(V):
            S = _halve_diagonal(V.mH @ V)
            return cls(V, S, torch.linalg.solve_triangular(S, V.mH, upper=True))

    def product(self) -> Tensor:
        """Return $U$."""
        with no_autocast(self.V):
            identity = torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)
            return identity - self.V @ self.W

    def gradient(self, left: Tensor, right: Tensor) -> Tensor:
        r"""Return the gradient of real vectors, given the gradient of $U$.

        With $B = -S^{-\top} V^\top \bar U$,

        $$ \bar V = B^\top - \bar U W^\top - V (M + M^\top), $$

        where $M$ is the upper triangle of $B W^\top$ with its diagonal halved.

        Args:
            left: $\bar U W^\top$, shape `(channels, reflections)`.
            right: $V^\top \bar U$, shape `(reflections, channels)`.

        Returns:
            The gradient, shape `(reflections, channels)`.
        """
        V, S, W = self
        B = -torch.linalg.solve_triangular(S.mT, right.to(V.dtype), upper=False)
        M = _halve_diagonal((B @ W.mT).triu())
        grad_V: Tensor = B.mT - left.to(V.dtype) - V @ (M + M.mT)
        return grad_V.mT


def _halve_diagonal(matrix: Tensor) -> Tensor:
    """Return a matrix with its diagonal halved. The lower triangle is not cleared."""
    weights = torch.ones_like(matrix, requires_grad=False)
    return matrix * weights.fill_diagonal_(0.5)


def mix_channels(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply the channels at every position: `y[b, :, p] = matrix @ x[b, :, p]`.

    Args:
        matrix: Shape `(out, channels)`.
        x: Shape `(batch, channels, *space)`.

    Returns:
        The product, shape `(batch, out, *space)`, in the dtype of `x` also under
        autocast.
    """
    matrix = matrix.to(x.dtype)
    with no_autocast(x):
        if x.ndim == 2:
            return x @ matrix.T
        mixed = torch.bmm(matrix.expand(len(x), *matrix.shape), _flat(x))
    if x.ndim == 3:  # not a view of a tensor
        return mixed
    return mixed.reshape(len(x), len(matrix), *x.shape[2:])


def correlate_channels(a: Tensor, b: Tensor) -> Tensor:
    """Sum `a[n, i, p] * conj(b[n, j, p])` over samples and positions.

    This is the gradient of `mix_channels` with respect to its matrix.

    Args:
        a: Shape `(batch, rows, *space)`.
        b: Shape `(batch, columns, *space)`.

    Returns:
        The sum, shape `(rows, columns)`.
    """
    with no_autocast(a):
        if a.ndim == 2:
            return a.T @ b.conj()
        per_sample = torch.bmm(_flat(a), _flat(b).mH)
        return per_sample[0] if len(per_sample) == 1 else per_sample.sum(0)


def _flat(x: Tensor) -> Tensor:
    """Flatten the spatial axes. `flatten` does not work with `is_grads_batched`."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
