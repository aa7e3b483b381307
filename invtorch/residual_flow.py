"""Residual flow: a residual block with a contraction, inverted by iteration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    register_parametrization,
    type_before_parametrizations,
)

from invtorch import _torch
from invtorch._checks import (
    check_count,
    check_module,
    check_number,
    check_real_log_det,
    check_returned,
)
from invtorch.module import InvertibleModule
from invtorch.precision import eps_of, is_differentiable

# their slopes are between -1 and 1
CONTRACTIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh),
    *(nn.Identity, nn.Flatten, nn.Unflatten),
)


class ResidualFlow(InvertibleModule):
    r"""Add a network that is a contraction to the whole state (i-ResNet).

    $$ y = x + g(x; c), \qquad x_{k+1} = y - g(x_k; c) $$

    If $g$ is a contraction, $\lVert g(x) - g(x') \rVert \le q \lVert x - x' \rVert$
    with $q < 1$, the iteration converges to the inverse, by a factor $q$ in each step.
    So the inverse costs many evaluations of $g$, and gradients through it keep the
    activations of all: this layer is slower than couplings. Therefore its `memory` is
    `"checkpoint"`: a container keeps its input instead of inverting it. Set
    `layer.memory = None` to invert it like others.

    With a `coefficient`, the layer makes $g$ a contraction: each weight $W$ of its $n$
    linear layers and convolutions is divided by $\max(1, \lVert W \rVert / q^{1/n})$.
    The norm of a convolution is bounded by the sum of the norms of the matrices of its
    kernel.

    The log-determinant is that of the Jacobian $I + \partial g / \partial x$, computed
    exactly, with one derivative for each entry of a sample: it is for samples of up to
    some hundred entries.

    Args:
        residual: The network $g$. It takes the state and the context, and returns a
            tensor of the shape of the state.
        coefficient: The bound $q$, between 0 and 1. $g$ must then be one linear layer
            or convolution, or an `nn.Sequential` of these and of activations with
            slopes of at most 1. With `None`, $g$ is used as it is, and must be a
            contraction in the state by itself.
        tolerance: How small the last step of the iteration must be, relative to the
            largest entry of its sample; by default 10 times the precision of the state,
            or of the parameters of the network if that is coarser.
        iterations: The most iterations.

    Shape:
        Any real tensor that the network takes; the output has the same shape.

    Raises:
        TypeError: If the network is not an `nn.Module`, or has parts that cannot be
            bounded, or an option is of another type.
        ValueError: If an option is out of its range, or the network returns a tensor of
            the wrong shape.
        RuntimeError: If the iteration does not reach the tolerance.
        NotImplementedError: If the log-determinant of a complex state is requested.

    Examples:
        >>> from torch import nn
        >>> g = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
        >>> layer, x = ResidualFlow(g), torch.randn(2, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-4)
        True

    References:
        Behrmann et al., *Invertible residual networks*, 2018. arXiv:1811.00995
    """

    def __init__(
        self,
        residual: nn.Module,
        *,
        coefficient: float | None = 0.9,
        tolerance: float | None = None,
        iterations: int = 1000,
    ) -> None:
        super().__init__()
        check_module("residual", residual)
        check_count("iterations", iterations)
        for name, value in {"coefficient": coefficient, "tolerance": tolerance}.items():
            if value is not None:
                check_number(name, value)
        if coefficient is not None and not 0 < coefficient < 1:
            raise ValueError(
                f"coefficient is {coefficient}, but must be between 0 and 1: only "
                f"contractions have an inverse by iteration"
            )
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}, but must be larger than 0")
        if coefficient is not None:
            bound_norms(residual, coefficient)
        self.residual = residual
        self.coefficient = coefficient
        self.tolerance = tolerance
        self.iterations = iterations
        self.memory = "checkpoint"

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Add the output of the network."""
        return x + self._residual(x, context)

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        """Subtract the output of the network at the last guess, until it stays."""
        tolerance = self.tolerance
        if tolerance is None:
            dtypes = {y.dtype, self._in_its_precision(y).dtype}
            tolerance = 10 * max(map(eps_of, dtypes))
        x, step = y, math.inf
        if not y.numel():
            return y.clone()
        for _ in range(self.iterations):
            last, x = x, y - self._residual(x, context)
            step = _largest_step(last, x, y)
            if step <= tolerance:
                return x
        raise RuntimeError(
            f"the inverse of ResidualFlow is off by {step:.1e} after {self.iterations} "
            f"iterations, but the tolerance is {tolerance:.1e}: lower `coefficient`, "
            f"or allow more"
        )

    def forward_and_log_det(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        r"""Return `y` and $\ln \lvert \det (I + \partial g / \partial x) \rvert$."""
        residual, log_det = self._with_log_det(x, context)
        return x + residual, log_det

    def inverse_and_log_det(self, y: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Return `x` and minus the log-determinant there."""
        x = self.inverse(y, *context)
        return x, -self._with_log_det(x, context)[1]

    def extra_repr(self) -> str:
        """Show the options."""
        tolerance = "" if self.tolerance is None else f", tolerance={self.tolerance}"
        limit = f", iterations={self.iterations}"
        return f"coefficient={self.coefficient}{tolerance}{limit}"

    def _residual(self, x: Tensor, context: tuple[Any, ...]) -> Tensor:
        residual: Tensor = self.residual(self._in_its_precision(x), *context)
        name = type_before_parametrizations(self.residual).__name__
        check_returned(name, residual, tuple(x.shape), x, name="residual")
        return residual.to(x.dtype)

    def _in_its_precision(self, x: Tensor) -> Tensor:
        """Return a state in the precision of the parameters of the network."""
        first = next(filter(is_differentiable, self.residual.parameters()), x)
        same_kind = first.is_complex() == x.is_complex() and is_differentiable(x)
        return x.to(first.dtype) if same_kind else x

    def _with_graph(self, x: Tensor, context: tuple[Any, ...]) -> Tensor:
        """Return a state that can be differentiated by.

        A leaf would be one that the container does not know, in a replay.
        """
        known = (*self.parameters(), *context)
        needed = [t for t in known if isinstance(t, Tensor) and t.requires_grad]
        if not needed:
            return x.requires_grad_()
        zero = needed[0].flatten()[:0].sum()
        return x + zero.to(x.dtype)

    def _with_log_det(
        self, x: Tensor, context: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return the output of the network, and the log-determinant of the layer.

        Both are those of one evaluation, in which the network may draw numbers. They
        have a graph where gradients are enabled.
        """
        check_real_log_det(self, x)
        transformed = _torch.is_functorch_active() or _torch.is_forward_ad_active()
        with_jacobian = self._transformed if transformed else self._differentiated
        residual, J = with_jacobian(x, context)
        J = in_single(J)
        identity = torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
        log_det: Tensor = torch.linalg.slogdet(identity + J).logabsdet
        return residual, log_det.to(x.dtype)

    def _differentiated(
        self, x: Tensor, context: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        r"""Return $g(x)$, and $\partial g / \partial x$ of each sample."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if not (graph and x.requires_grad):
                x = self._with_graph(x.detach(), context if graph else ())
            residual = self._residual(x, context)
            columns = residual.flatten(1)
            rows = [
                torch.autograd.grad(
                    columns[:, i].sum(), x, create_graph=graph, retain_graph=True
                )[0].flatten(1)
                for i in range(columns.shape[1])
            ]
            return residual if graph else residual.detach(), torch.stack(rows, 1)

    def _transformed(
        self, x: Tensor, context: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return the same inside of a transform, whose tensors have no graph."""

        def columns(x: Tensor) -> tuple[Tensor, Tensor]:
            residual = self._residual(x, context)
            return residual.flatten(1).sum(0), residual

        rows, residual = torch.func.jacrev(columns, has_aux=True)(x)
        return residual, rows.movedim(0, 1).flatten(2)


class NormBound(nn.Module):
    """A parametrization: divide a weight such that its operator norm has a bound.

    Args:
        limit: The bound.
        groups: The number of groups of a convolution.
    """

    def __init__(self, limit: float, groups: int) -> None:
        super().__init__()
        self.limit = limit
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, divided where its norm is larger than the limit."""
        # (positions of the kernel, groups, out, in)
        matrices = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(-1)
        matrices = matrices.movedim(-1, 0).unflatten(1, (self.groups, -1))
        norms = torch.linalg.matrix_norm(in_single(matrices), 2).amax(1)
        factor = (norms.sum() / self.limit).clamp(min=1)
        bounded: Tensor = weight / factor.to(weight.dtype)
        return bounded

    def extra_repr(self) -> str:
        """Show the bound."""
        return f"{self.limit:.3g}"


def in_single(matrix: Tensor) -> Tensor:
    """Convert half precision to single, in which matrices have norms."""
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def bound_norms(network: nn.Module, coefficient: float) -> None:
    """Parametrize the weights of a network such that it is a contraction.

    Args:
        network: One linear layer or convolution, or a sequence with activations.
        coefficient: The Lipschitz constant that it is given.

    Raises:
        TypeError: If it has a part that cannot be bounded.
    """
    parts = [*network] if isinstance(network, nn.Sequential) else [network]
    weighted = []
    for part in parts:
        if isinstance(part, (nn.Linear, _torch.Convolution)):
            weighted.append(part)
        elif not isinstance(part, CONTRACTIONS) or _slope(part) > 1:
            raise TypeError(
                f"residual has a {type(part).__name__}, whose Lipschitz constant is "
                f"not known: use linear layers, convolutions and ReLU, ELU or Tanh, or "
                f"coefficient=None"
            )
    limit = coefficient ** (1 / max(len(weighted), 1))
    for part in weighted:
        _check_padding(part)
        groups = int(getattr(part, "groups", 1))
        register_parametrization(part, "weight", NormBound(limit, groups))


def _check_padding(part: nn.Module) -> None:
    mode = getattr(part, "padding_mode", "zeros")
    if mode not in ("zeros", "circular"):
        raise TypeError(
            f"residual has a {type(part).__name__} with padding_mode={mode!r}, which "
            f"may expand: use 'zeros' or 'circular'"
        )


def _slope(part: nn.Module) -> float:
    """Return the largest slope of an activation, as far as its options change it."""
    if isinstance(part, nn.LeakyReLU):
        return abs(part.negative_slope)
    return abs(float(getattr(part, "alpha", 1.0)))


def _largest_step(last: Tensor, x: Tensor, y: Tensor) -> float:
    """Return the largest change of an entry, relative to the size of its sample."""
    with torch.no_grad():
        change, *sizes = (t.abs().flatten(1).amax(1) for t in (x - last, x, y))
        size = torch.maximum(*sizes)  # x may be 0
        steps = change / size.clamp(min=torch.finfo(size.dtype).tiny)
        return float(_torch.unwrapped(steps).max())
