"""Invertible modules and the transforms of other libraries, as each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from invtorch import InvertibleModule
from invtorch._checks import check_count, check_log_det, check_module
from invtorch.engine.restore.context import map_tensors, tensors_in


class ToTransform(Transform):
    r"""Use an invertible module as a transform of `torch.distributions`.

    The transform maps as the module does. A network from data to latent variables is
    the inverse of what `TransformedDistribution` needs: give it `net.inv`.

    Args:
        module: The module.
        context: Further arguments of the module.
        event_dim: The number of axes of one sample. The others are
            batch axes.
        context_dim: The number of axes of one context, for tensors of the context with
            any number of batch axes, which are broadcast with those of the samples.
            By default each tensor has one, in front.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`, or returns several tensors.
        ValueError: If `event_dim` is less than 1, or a sample has fewer axes.

    Examples:
        >>> from torch import distributions as D
        >>> from invtorch import Householder1x1
        >>> from invtorch.flows import ToTransform
        >>> net = Householder1x1(3)
        >>> base = D.Independent(D.Normal(torch.zeros(3), 1.0), 1)
        >>> flow = D.TransformedDistribution(base, [ToTransform(net.inv)])
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    bijective = True

    def __init__(
        self,
        module: InvertibleModule,
        *context: Any,
        event_dim: int = 1,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, InvertibleModule):
            raise TypeError(
                f"module is a {type(module).__name__}, but must be an InvertibleModule"
            )
        check_count("event_dim", event_dim)
        self.module = module
        self.context = context
        self.context_dim = context_dim
        self.domain = constraints.independent(constraints.real, event_dim)
        self.codomain = self.domain
        self._known: tuple[Tensor, Tensor, Tensor] | None = None

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._run(self.module.forward_and_log_det, x)
        self._known = (x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._run(self.module.inverse_and_log_det, y)
        self._known = (x, y, -log_det)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant; the one of the latest call is known."""
        known, self._known = self._known, None  # it would keep the graph alive
        if known is not None and known[0] is x and known[1] is y:
            return known[2]
        return self._run(self.module.forward_and_log_det, x)[1]

    def _run(self, function: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        """Call a function on a state and a context with one batch axis."""
        if state.ndim < self.event_dim:
            raise ValueError(
                f"the state has shape {tuple(state.shape)}, but event_dim is "
                f"{self.event_dim}: give it at least as many axes"
            )
        batch = self._batch(state.shape[: state.ndim - self.event_dim])
        event = state.shape[state.ndim - self.event_dim :]
        flat = state.expand(*batch, *event).reshape(-1, *event)
        context = map_tensors(partial(self._expanded, batch), self.context)
        result, log_det = function(flat, *context)
        if not isinstance(result, Tensor):
            raise TypeError(
                f"{type(self.module).__name__} returned a {type(result).__name__}, but "
                f"a transform needs one tensor: end with `Join`"
            )
        return result.reshape(*batch, *result.shape[1:]), log_det.reshape(batch)

    def _batch(self, batch: torch.Size) -> torch.Size:
        """Return the batch axes of the samples and the context together."""
        own = [t.shape[: self._batch_axes(t)] for t in tensors_in(self.context)]
        # a context for one sample adds no axis
        more = [shape for shape in own if shape.numel() != 1]
        return torch.Size(torch.broadcast_shapes(batch, *more))

    def _expanded(self, batch: torch.Size, tensor: Tensor) -> Tensor:
        """Repeat a context such that each sample has one."""
        axes = self._batch_axes(tensor)
        if tensor.ndim == 0:
            return tensor
        own, rest = tensor.shape[:axes], tensor.shape[axes:]
        while own and own[0] == 1:
            own = own[1:]
        return tensor.reshape(*own, *rest).expand(*batch, *rest).reshape(-1, *rest)

    def _batch_axes(self, tensor: Tensor) -> int:
        """Return how many axes of a context are batch axes."""
        if self.context_dim is None:
            return min(tensor.ndim, 1)
        return max(tensor.ndim - self.context_dim, 0)


class FromTransform(InvertibleModule):
    """Use a transform of `torch.distributions`, or of zuko, as an invertible module.

    Args:
        transform: The transform. Its parameters are not registered: give them as
            context if they need gradients, or use `parameters`.
        parameters: A module or list of parameters that the transform reads.

    Shape:
        `(batch, ...)`; the output has the shape that the transform returns.

    Raises:
        TypeError: If it is not a transform.
        ValueError: If it has no inverse.

    Examples:
        >>> from torch.distributions.transforms import SigmoidTransform
        >>> from invtorch.flows import FromTransform
        >>> layer = FromTransform(SigmoidTransform())
        >>> x = torch.zeros(1, 2)
        >>> layer(x)
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self, transform: Transform, parameters: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not isinstance(transform, Transform):
            raise TypeError(
                f"transform is a {type(transform).__name__}, but must be a "
                f"torch.distributions.Transform"
            )
        if not transform.bijective:
            raise ValueError(
                f"{type(transform).__name__} has no inverse: give an invertible module "
                f"a transform that is bijective"
            )
        self.transform = transform
        self.inner = parameters

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Apply the transform."""
        y: Tensor = self.transform(x)
        return y

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Apply the inverse."""
        x: Tensor = self.transform.inv(y)
        return x

    def forward_and_log_det(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Apply the transform, and sum its log-determinant over each sample."""
        y: Tensor = self.transform(x)
        return y, self._per_sample(self.transform.log_abs_det_jacobian(x, y), x)

    def inverse_and_log_det(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Apply the inverse, and sum its log-determinant over each sample."""
        x: Tensor = self.transform.inv(y)
        return x, -self._per_sample(self.transform.log_abs_det_jacobian(x, y), x)

    def _per_sample(self, log_det: Tensor, state: Tensor) -> Tensor:
        """Sum what is returned for each entry, or for each row of a sample."""
        if isinstance(log_det, Tensor) and log_det.ndim > 1:
            log_det = log_det.flatten(1).sum(1)
        check_log_det(type(self.transform).__name__, log_det, state)
        return log_det


class _Foreign(InvertibleModule):
    """A module of another library, whose methods return pairs with a log-determinant.

    Args:
        module: The module.
    """

    names = ("forward", "inverse")

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name in self.names:
            if not callable(getattr(module, name, None)):
                raise TypeError(
                    f"{type(module).__name__} has no method `{name}`, which "
                    f"{type(self).__name__} calls"
                )
        self.module = module

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Map data to the latent variable."""
        return self._pair(0, x, context)[0]

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        """Map the latent variable to data."""
        return self._pair(1, y, context)[0]

    def forward_and_log_det(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Map data to the latent variable, with the log-determinant."""
        return self._pair(0, x, context)

    def inverse_and_log_det(self, y: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Map the latent variable to data, with the log-determinant."""
        return self._pair(1, y, context)

    def _pair(
        self, index: int, state: Tensor, context: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        name = type(self.module).__name__
        pair = getattr(self.module, self.names[index])(state, *context)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise RuntimeError(
                f"`{self.names[index]}` of {name} returned {_described(pair)}, but "
                f"must return a tensor and its log-determinant"
            )
        result, log_det = pair
        if not isinstance(result, Tensor) or result.shape[:1] != state.shape[:1]:
            raise RuntimeError(
                f"`{self.names[index]}` of {name} returned {_described(result)} for a "
                f"batch of {len(state)}: it must return one tensor of that batch"
            )
        if isinstance(log_det, (int, float)):
            log_det = result.new_tensor(log_det)
        if (
            isinstance(log_det, Tensor) and log_det.ndim == 0
        ):  # the same for all samples
            log_det = log_det.expand(len(state))
        check_log_det(name, log_det, result)
        return result, log_det


class FromNflows(_Foreign):
    """Use a transform of nflows as an invertible module.

    Its context, one tensor or none, is that of the container.

    Args:
        module: An `nflows.transforms.Transform`.

    Raises:
        TypeError: If it does not have the methods of one.
        RuntimeError: If it returns no pair, or a log-determinant of another shape.

    Examples:
        >>> from invtorch.flows import FromNflows
        >>> class Double(nn.Module):  # with the methods of a transform
        ...     def forward(self, x, context=None):
        ...         return 2 * x, torch.full((len(x),), x[0].numel() * 0.6931)
        ...     def inverse(self, y, context=None):
        ...         return y / 2, torch.full((len(y),), -y[0].numel() * 0.6931)
        >>> FromNflows(Double())(torch.ones(1, 3))
        tensor([[2., 2., 2.]])
    """


class FromNormflows(_Foreign):
    """Use a flow layer of normflows as an invertible module.

    normflows maps latent variables to data in `forward`; here the directions are
    swapped.

    Args:
        module: A `normflows.flows.Flow`.

    Raises:
        TypeError: If it does not have the methods of one.
        RuntimeError: If it returns no pair, or a log-determinant of another shape.

    Examples:
        >>> from invtorch.flows import FromNormflows
        >>> class Double(nn.Module):  # with the methods of a flow
        ...     def forward(self, x, context=None):
        ...         return 2 * x, torch.full((len(x),), x[0].numel() * 0.6931)
        ...     def inverse(self, y, context=None):
        ...         return y / 2, torch.full((len(y),), -y[0].numel() * 0.6931)
        >>> FromNormflows(Double())(torch.ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    names = ("inverse", "forward")


class FromZuko(InvertibleModule):
    """Use a lazy transform of zuko as an invertible module.

    A lazy transform makes a transform of its parameters and its context, in each call.
    The context, one tensor or none, is that of the container.

    Args:
        module: A `zuko.lazy.LazyTransform`, such as the `transform` of a flow.

    Raises:
        TypeError: If it is no module, or makes no transform.
        RuntimeError: If a log-determinant is not one number for each sample.

    Examples:
        >>> from torch.distributions.transforms import AffineTransform
        >>> from invtorch.flows import FromZuko
        >>> class Double(nn.Module):  # with the method of a lazy transform
        ...     def forward(self, c=None):
        ...         return AffineTransform(0.0, 2.0)
        >>> FromZuko(Double())(torch.ones(1, 3))
        tensor([[2., 2., 2.]])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        check_module("module", module)
        self.module = module

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Apply the transform of the context."""
        return self._layer(context).forward(x)

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        """Apply the inverse of that transform."""
        return self._layer(context).inverse(y)

    def forward_and_log_det(self, x: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Apply the transform, with its log-determinant."""
        return self._layer(context).forward_and_log_det(x)

    def inverse_and_log_det(self, y: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """Apply the inverse, with its log-determinant."""
        return self._layer(context).inverse_and_log_det(y)

    def _layer(self, context: tuple[Any, ...]) -> FromTransform:
        return FromTransform(self.module(*context))


class ToZuko(nn.Module):
    """Use an invertible module as a lazy transform of zuko, in a list for its `Flow`.

    Args:
        module: The module. Its context is the one of zuko, if one is given.
        event_dim: The number of axes of one sample.
        context_dim: The number of axes of one context. The others are batch axes, which
            are broadcast with those of the samples, as everywhere in zuko.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`.
        ValueError: If `event_dim` is less than 1.

    Examples:
        >>> from invtorch.flows import ToZuko
        >>> transform = ToZuko(Householder1x1(3))()
        >>> x = torch.ones(2, 3)
        >>> torch.allclose(transform.inv(transform(x)), x)
        True
    """

    def __init__(
        self, module: InvertibleModule, event_dim: int = 1, context_dim: int = 1
    ) -> None:
        super().__init__()
        ToTransform(module, event_dim=event_dim)  # checks both
        check_count("context_dim", context_dim)
        self.module = module
        self.event_dim = event_dim
        self.context_dim = context_dim

    def forward(self, c: Any = None) -> ToTransform:
        """Return the transform for a context."""
        context = () if c is None else (c,)
        dims = {"event_dim": self.event_dim, "context_dim": self.context_dim}
        return ToTransform(self.module, *context, **dims)


class ToNflows(nn.Module):
    """Use an invertible module as a transform of nflows, in its `Flow` for example.

    A whole `InvertibleSequential` keeps its flat memory there.

    Args:
        module: The module. Its context is the one of nflows, if one is given.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`.

    Examples:
        >>> from invtorch.flows import ToNflows
        >>> transform = ToNflows(Householder1x1(3))
        >>> y, log_det = transform(torch.ones(2, 3), context=None)
        >>> x, _ = transform.inverse(y)
        >>> torch.allclose(x, torch.ones(2, 3))
        True
    """

    names = ("forward_and_log_det", "inverse_and_log_det")

    def __init__(self, module: InvertibleModule) -> None:
        super().__init__()
        if not isinstance(module, InvertibleModule):
            raise TypeError(
                f"module is a {type(module).__name__}, but must be an InvertibleModule"
            )
        self.module = module

    def forward(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """Call the module, with its log-determinant."""
        return self._call(0, x, context)

    def inverse(self, y: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """Call its inverse, with its log-determinant."""
        return self._call(1, y, context)

    def _call(self, index: int, state: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        function = getattr(self.module, self.names[index])
        result: tuple[Tensor, Tensor]
        result = function(state) if context is None else function(state, context)
        return result


class ToNormflows(ToNflows):
    """Use an invertible module as a flow layer of normflows.

    The module maps data to the latent variable. As in normflows, `forward` of what
    results maps the latent variable to data.

    Args:
        module: The module. Its context is the one of normflows, if one is given.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`.

    Examples:
        >>> from invtorch.flows import ToNormflows
        >>> net = Householder1x1(3)
        >>> x, _ = ToNormflows(net)(torch.ones(2, 3))
        >>> torch.allclose(net(x), torch.ones(2, 3))
        True
    """

    names = ("inverse_and_log_det", "forward_and_log_det")


def _described(value: Any) -> str:
    """Return what a value is, in a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
