"""Linear algebra on channels: orthogonal matrices, and products with matrices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import orthogonal

from invtorch._checks import check_count
from invtorch.precision import no_autocast


def householder_product(vectors: Tensor, state: Tensor | None = None) -> Tensor:
    r"""Return the orthogonal matrix $U = H_1 H_2 \cdots H_R$.

    $$ H_r = I - 2\,v_r v_r^\top / (v_r^\top v_r), \qquad
       U = I - V S^{-1} V^\top $$

    The $v_r$ are the columns of $V$. $S$ is the upper triangle of $V^\top V$ with its
    diagonal halved; a vector of zeros reflects nothing. If the vectors are complex,
    $U$ is unitary, and $\top$ is the conjugate transpose.

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
        V = vectors.to(precise_dtype(vectors)).T  # never in TF32
        with no_autocast(V):
            S = _halve_diagonal(V.mH @ V)
            identity = torch.eye(len(S), dtype=S.dtype, device=S.device)
            S = S + identity * ((S * identity).sum(0) == 0)  # zeros reflect nothing
            return cls(V, S, torch.linalg.solve_triangular(S, V.mH, upper=True))

    def product(self) -> Tensor:
        """Return $U$."""
        with no_autocast(self.V):
            channels = self.V.shape[0]
            identity = torch.eye(channels, dtype=self.V.dtype, device=self.V.device)
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


# the maps from a matrix to an orthogonal one that PyTorch has, besides reflections
ORTHOGONAL_MAPS = ("cayley", "matrix_exp")


class SquareMatrix(nn.Module):
    """A square matrix, or a batch of them, that a parametrization can constrain."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix)

    def extra_repr(self) -> str:
        """Show the shape."""
        return str(tuple(self.weight.shape))


def orthogonal_matrix(matrix: Tensor, orthogonal_map: str) -> nn.Module:
    """Return a module whose `weight` is a learned orthogonal matrix.

    Args:
        matrix: Its first value, an orthogonal matrix, or a batch of them.
        orthogonal_map: `"cayley"` or `"matrix_exp"`, see
            `torch.nn.utils.parametrizations.orthogonal`.

    Raises:
        ValueError: If there is no such map.
    """
    if orthogonal_map not in ORTHOGONAL_MAPS:
        raise ValueError(
            f"map is {orthogonal_map!r}, but must be one of {ORTHOGONAL_MAPS}: "
            f"products of reflections are those of `Householder1x1`"
        )
    module: nn.Module = orthogonal(SquareMatrix(matrix), orthogonal_map=orthogonal_map)
    return module


def orthogonal_weight(module: nn.Module, state: Tensor) -> Tensor:
    r"""Return the matrix of `orthogonal_matrix`, as orthogonal as the state is precise.

    Rounding leaves a matrix in single precision orthogonal up to 1e-7, and one that was
    in half precision up to 1e-2. Three steps $W \leftarrow W (3 I - W^\top W) / 2$ in
    double precision square that error three times.

    Raises:
        ValueError: If the matrix is complex and the state is real.
    """
    with no_autocast(state):
        W = _weight(module)
        W = W.to(precise_dtype(W, state))
        identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
        for _ in range(3):
            W = W @ (3 * identity - W.mH @ W) / 2
    return W


def _weight(module: nn.Module) -> Tensor:
    """Return the matrix, computed in at least single precision.

    In half precision PyTorch's matrix exponential is wrong, and it solves no equations.
    """
    layer: Any = module  # whose weight has parametrizations
    chain = layer.parametrizations["weight"]
    weight: Tensor
    matrix: Tensor = chain.original
    single = torch.promote_types(matrix.dtype, torch.float32)
    if matrix.dtype == single or len(chain) > 1:
        weight = layer.weight
        return weight
    (orthogonal_map,) = chain
    base = {"base": orthogonal_map.base.to(single)}
    weight = functional_call(orthogonal_map, base, (matrix.to(single),))
    return weight


def random_orthogonal(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw orthogonal matrices of shape `(..., n, n)` uniformly."""
    # in double precision, whatever the default: QR in half precision does not exist
    device = None if generator is None else generator.device
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    Q, R = torch.linalg.qr(normal)
    signs = R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    uniform: Tensor = (signs * Q).to(torch.get_default_dtype())
    return uniform


def precise_dtype(matrix: Tensor, state: Tensor | None = None) -> torch.dtype:
    """Return the dtype in which small matrices are factored and inverted.

    It is double precision; single precision on MPS, which has no double precision.

    Raises:
        ValueError: If the matrix is complex and the state is real.
    """
    if state is not None and matrix.is_complex() and not state.is_complex():
        raise ValueError(
            "the matrix is complex, but the state is real: make the state complex, or "
            "the parameters real"
        )
    precise = torch.float32 if matrix.device.type == "mps" else torch.float64
    return torch.promote_types(matrix.dtype, precise)


def _halve_diagonal(matrix: Tensor) -> Tensor:
    """Return a matrix with its diagonal halved. The lower triangle is not cleared."""
    # not in place, which `torch.compile` refuses inside of `checkpoint`
    half = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) / 2
    return matrix * (1 - half)


def mix_channels(matrix: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """Multiply the channels at every position: `y[b, :, p] = matrix @ x[b, :, p]`.

    Args:
        matrix: Shape `(out, channels)`.
        x: Shape `(batch, channels, *space)`, or with the channels on another axis.
        dim: The axis of the channels.

    Returns:
        The product, shape `(batch, out, *space)`, in the dtype of `x` also under
        autocast.
    """
    matrix = matrix.to(x.dtype)
    with no_autocast(x):
        if dim in (-1, x.ndim - 1):
            return x @ matrix.T
        if dim not in (1, 1 - x.ndim):
            return (x.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
        mixed = torch.bmm(matrix.expand(x.shape[0], -1, -1), _flat(x))
    if x.ndim == 3:  # not a view of a tensor
        return mixed
    return mixed.reshape(x.shape[0], matrix.shape[0], *x.shape[2:])


def correlate_channels(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    """Sum `a[n, i, p] * conj(b[n, j, p])` over samples and positions.

    This is the gradient of `mix_channels` with respect to its matrix.

    Args:
        a: Shape `(batch, rows, *space)`, or with the rows on another axis.
        b: Shape `(batch, columns, *space)`.
        dim: The axis of rows and columns.

    Returns:
        The sum, shape `(rows, columns)`.
    """
    with no_autocast(a):
        if dim in (-1, a.ndim - 1) or dim not in (1, 1 - a.ndim):
            # not `flatten`, of which vmap knows no such case
            rows, columns = (
                t.movedim(dim, -1).reshape(-1, t.shape[dim]) for t in (a, b)
            )
            return rows.T @ columns.conj()
        per_sample = torch.bmm(_flat(a), _flat(b).mH)
        return per_sample[0] if a.shape[0] == 1 else per_sample.sum(0)


def matrix_gradient(matrix: Tensor, a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return `correlate_channels(a, b, dim)`, real if the matrix is real."""
    grad = correlate_channels(a, b, dim)
    return grad if matrix.is_complex() else grad.real


def known_product(output: Tensor, matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return `output`, known to be the product of a matrix and `x`, with a graph.

    A layer whose input is rebuilt from its output need not multiply again.
    """
    product: Tensor = _KnownProduct.apply(output, matrix.to(x.dtype), x, dim)
    return product


class _KnownProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, matrix: Tensor, x: Tensor, dim: int
    ) -> Tensor:
        ctx.save_for_backward(matrix, x)
        ctx.dim = dim
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        matrix, x = ctx.saved_tensors
        _, matrix_needed, x_needed, _ = ctx.needs_input_grad
        return (
            None,
            matrix_gradient(matrix, grad, x, ctx.dim) if matrix_needed else None,
            mix_channels(matrix.mH, grad, ctx.dim) if x_needed else None,
            None,
        )


def rebuilt(matrix: Tensor, output: Tensor, dim: int) -> Tensor:
    """Return the product of a matrix and an output as a leaf."""
    with torch.no_grad():
        return mix_channels(matrix, output, dim).requires_grad_()


def _flat(x: Tensor) -> Tensor:
    """Flatten the spatial axes. `flatten` does not work with `is_grads_batched`."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
