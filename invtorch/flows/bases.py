"""Base distributions: the density of the latent variable of a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from invtorch._checks import check_module, check_tensor
from invtorch.keywords import keywords_of

State: TypeAlias = Tensor | tuple[Tensor, ...]
Shape: TypeAlias = Sequence[int] | Sequence[Sequence[int]]
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Base(nn.Module):
    r"""A normal distribution with independent entries, $z = \mu + \sigma\epsilon$.

    $$ \ln p(z) = -\sum_i \Bigl(\tfrac12 \epsilon_i^2 + \ln \sigma_i
       + \tfrac12 \ln 2\pi\Bigr), \qquad \epsilon = (z - \mu) / \sigma $$

    A subclass defines `parts`, which returns the mean and the logarithm of the standard
    deviation of each tensor. A latent variable is one tensor, or a tuple of them if the
    network ends with several.

    Args:
        shape: The shape of one latent variable, without the batch axis; or a sequence
            of shapes, one for each tensor.

    Raises:
        TypeError: If a shape is not made of whole numbers.
        ValueError: If one of them is less than 1.

    Examples:
        >>> from invtorch.flows import Base
        >>> class Narrow(Base):
        ...     def parts(self):
        ...         return [(torch.zeros(()), torch.tensor(0.1).log())]
        >>> Narrow([2]).sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if not isinstance(shape, Sequence) or isinstance(shape, str):
            raise TypeError(
                f"shape is {shape!r}, but must be a sequence of whole numbers, such as "
                f"[2]: the shape of one latent variable, without the batch axis"
            )
        self.single = not any(isinstance(one, Sequence) for one in shape)
        self.shapes = _shapes([shape] if self.single else shape)
        # follows the device and dtype of the flow, also without parameters
        self._like: Tensor
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def parts(self, *context: Any, **named: Any) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log standard deviation of each tensor, to be broadcast."""
        raise NotImplementedError(f"{type(self).__name__} does not define parts")

    def log_prob(self, z: State, *context: Any, **named: Any) -> Tensor:
        r"""Return $\ln p(z)$, one number for each sample.

        Args:
            z: The latent variables, `(batch, *shape)`.
            context: What the distribution is conditioned on.
            named: The same, by keyword.

        Raises:
            TypeError: If `z` is complex.
            ValueError: If `z` does not have the shape of the distribution, or the
                context another batch.
        """
        total = None
        tensors = check_latent(self, z, self.shapes)
        parts = self.parts(*context, **named)
        for tensor, (mean, log_std) in zip(tensors, parts, strict=True):
            self._check_batch(tensor, mean)
            epsilon = (tensor - mean) * (-log_std).exp()
            entries = 0.5 * epsilon.square() + log_std + HALF_LOG_2PI
            log_prob = -entries.flatten(1).sum(1)
            total = log_prob if total is None else total + log_prob
        assert total is not None
        return total

    def sample(
        self,
        count: int,
        *context: Any,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        **named: Any,
    ) -> State:
        r"""Draw `count` latent variables $\mu + T\sigma\epsilon$.

        Args:
            count: How many; the batch size of the context, if there is one.
            context: What the distribution is conditioned on.
            temperature: The factor $T$ of the standard deviation; below 1 the samples
                are closer to the mean.
            generator: The source of random numbers.
            named: The context, by keyword.
        """
        if self._like.is_complex():
            raise TypeError(_complex(self))
        drawn = []
        for shape, (mean, log_std) in zip(
            self.shapes, self.parts(*context, **named), strict=True
        ):
            epsilon = torch.randn(
                (count, *shape),
                generator=generator,
                dtype=self._like.dtype,
                device=self._like.device,
            )
            drawn.append(mean + temperature * log_std.exp() * epsilon)
        return drawn[0] if self.single else tuple(drawn)

    def _keywords(self) -> frozenset[str] | None:
        """Return the names of the keyword context that it takes; `None` for any."""
        return keywords_of(self.parts, 0)

    def _check_batch(self, z: Tensor, mean: Tensor) -> None:
        if mean.ndim == z.ndim and len(mean) not in (1, len(z)):
            raise ValueError(
                f"the base {type(self).__name__} has a context for a batch of "
                f"{len(mean)}, but the latent variable has {len(z)}: give it one each"
            )

    def extra_repr(self) -> str:
        """Show the shape."""
        return _shown(self.shapes)


class StandardNormal(Base):
    r"""The standard normal distribution, $\mu = 0$ and $\sigma = 1$.

    Args:
        shape: The shape of one latent variable, without the batch axis; or a sequence
            of shapes, one for each tensor.

    Raises:
        TypeError: If a shape is not made of whole numbers.
        ValueError: If one of them is less than 1.

    Examples:
        >>> from invtorch.flows import StandardNormal
        >>> base = StandardNormal([2])
        >>> base.log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def parts(self, *_: Any, **__: Any) -> list[tuple[Tensor, Tensor]]:
        """Return zeros."""
        zero = self._like.new_zeros(())
        return [(zero, zero)] * len(self.shapes)

    def _keywords(self) -> frozenset[str] | None:
        return frozenset()


class DiagonalNormal(Base):
    r"""A normal distribution with a learned mean and standard deviation of each entry.

    The parameters are `means` and `log_stds`, zeros at first.

    Args:
        shape: The shape of one latent variable, without the batch axis; or a sequence
            of shapes, one for each tensor.

    Raises:
        TypeError: If a shape is not made of whole numbers.
        ValueError: If one of them is less than 1.

    Examples:
        >>> from invtorch.flows import DiagonalNormal
        >>> base = DiagonalNormal([3, 4])
        >>> base.sample(5).shape
        torch.Size([5, 3, 4])
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.means = nn.ParameterList(map(torch.zeros, self.shapes))
        self.log_stds = nn.ParameterList(map(torch.zeros, self.shapes))

    def parts(self, *_: Any, **__: Any) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters."""
        return [*zip(self.means, self.log_stds, strict=True)]

    def _keywords(self) -> frozenset[str] | None:
        return frozenset()


class ConditionalNormal(Base):
    r"""A normal distribution whose parameters are computed from the context.

    $$ (\mu, \ln \sigma) = N(c) $$

    Args:
        network: The network $N$. It takes the context and returns twice the channels
            of the latent variable: first those of $\mu$, then those of $\ln\sigma$.
        shape: The shape of one latent variable, without the batch axis.

    Raises:
        TypeError: If the network is not an `nn.Module` or does not return a tensor, or
            the shape is not made of whole numbers.
        ValueError: If one of them is less than 1, there are several shapes, or the
            network returns another shape.

    Examples:
        >>> from torch import nn
        >>> from invtorch.flows import ConditionalNormal
        >>> base = ConditionalNormal(nn.Linear(3, 4), [2])
        >>> base.log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(shape)
        if len(self.shapes) > 1:
            raise ValueError(
                f"shape is {shape}, but a ConditionalNormal has one tensor: write a "
                f"subclass of Base with `parts` for several"
            )
        check_module("network", network)
        self.network = network

    def parts(self, *context: Any, **named: Any) -> list[tuple[Tensor, Tensor]]:
        """Evaluate the network."""
        output: Tensor = self.network(*context, **named)
        check_tensor(type(self.network).__name__, output, "network")
        (shape,) = self.shapes
        expected = (2 * shape[0], *shape[1:])
        if output.shape[1:] != expected:
            raise ValueError(
                f"the network of a ConditionalNormal returned shape "
                f"{tuple(output.shape[1:])} without the batch, but mean and deviation "
                f"need {expected}"
            )
        mean, log_std = output.chunk(2, 1)
        return [(mean, log_std)]

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.network, 0)


def check_latent(
    base: object, z: State, shapes: Sequence[tuple[int, ...]]
) -> tuple[Tensor, ...]:
    """Return the tensors of a latent variable, if a base has a density of it.

    Args:
        base: The distribution.
        z: The latent variable.
        shapes: The shapes of the tensors that the distribution draws.

    Raises:
        TypeError: If the latent variable is complex.
        ValueError: If it has another shape than the base.
    """
    tensors = (z,) if isinstance(z, Tensor) else z
    found = [tuple(t.shape[1:]) for t in tensors]
    if found != [*shapes]:
        raise ValueError(
            f"the latent variable has shape {_shown(found)} without the batch, but "
            f"the base {type(base).__name__} {_shown(shapes)}: give the base the shape "
            f"that the network returns"
        )
    if any(t.is_complex() for t in tensors):
        raise TypeError(_complex(base))
    return tensors


def _complex(base: object) -> str:
    return (
        f"the latent variable is complex, but {type(base).__name__} is a density of "
        f"real numbers: make channels of both parts (`torch.view_as_real`)"
    )


def _shapes(shapes: Sequence[Any]) -> list[tuple[int, ...]]:
    try:
        checked = [tuple(map(index, shape)) for shape in shapes]
    except TypeError:
        raise TypeError(
            f"shape is {shapes}, but must be made of whole numbers, or of such shapes"
        ) from None
    if not checked or min(min(shape, default=0) for shape in checked) < 1:
        raise ValueError(
            f"shape is {shapes}, but must have numbers of at least 1: give the shape "
            f"of one latent variable, without the batch axis"
        )
    return checked


def _shown(shapes: Sequence[Sequence[int]]) -> str:
    shown = [tuple(one) for one in shapes]
    return str(shown[0] if len(shown) == 1 else shown)
