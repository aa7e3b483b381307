"""A normalizing flow: an invertible network and a base distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from invtorch import InvertibleModule
from invtorch._checks import (
    check_count,
    check_generator,
    check_log_det,
    check_number,
)
from invtorch.engine.restore.context import map_tensors, tensors_in
from invtorch.flows.bases import Base, check_latent
from invtorch.flows.dequantize import Dequantize
from invtorch.keywords import all_keywords, check_keywords, taken


class Flow(nn.Module):
    r"""A density of data: an invertible network $f$ maps data to a base distribution.

    $$ \ln p(x) = \ln p_z(f(x)) + \ln\lvert\det \partial f/\partial x\rvert $$

    If $f$ is an `InvertibleSequential`, maximum likelihood trains in the memory of one
    layer: the log-determinants are summed inside of the container (eq. 4 of the
    paper).

    Args:
        transform: The network $f$, from data to latent variables.
        base: The distribution of $z = f(x)$: a `Base`, or any
            `torch.distributions.Distribution`, of one sample.
        dequantize: Adds noise to data of whole numbers, if given.

    Shape:
        That of the network. Context is passed to the network, and to a `Base` that is
        conditional: to each of them the positional one, and those keyword arguments
        that it takes.

    Raises:
        TypeError: If the network is not an `InvertibleModule`, the base not a
            distribution, or `dequantize` not a `Dequantize`.

    Examples:
        >>> from torch import nn
        >>> from invtorch import AffineCoupling, Householder1x1, InvertibleSequential
        >>> from invtorch.flows import Flow, StandardNormal
        >>> steps = [
        ...     module
        ...     for _ in range(4)
        ...     for module in (Householder1x1(4), AffineCoupling(nn.Linear(2, 4)))
        ... ]
        >>> flow = Flow(InvertibleSequential(*steps), StandardNormal([4]))
        >>> x = torch.randn(8, 4)
        >>> loss = -flow.log_prob(x).mean()
        >>> loss.backward()
        >>> flow.sample(3).shape
        torch.Size([3, 4])

    References:
        Rezende and Mohamed, *Variational inference with normalizing flows*, 2015.
        arXiv:1505.05770

        Putzky and Welling, *Invert to learn to invert*, 2019. arXiv:1911.10914
    """

    def __init__(
        self,
        transform: InvertibleModule,
        base: Base | Distribution,
        *,
        dequantize: Dequantize | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(transform, InvertibleModule):
            raise TypeError(
                f"transform is a {type(transform).__name__}, but must be an "
                f"InvertibleModule: the flow needs its inverse and log-determinant"
            )
        if not isinstance(base, (Base, Distribution)):
            raise TypeError(
                f"base is a {type(base).__name__}, but must be one of invtorch.flows, "
                f"or a torch.distributions.Distribution"
            )
        if not (dequantize is None or isinstance(dequantize, Dequantize)):
            raise TypeError(
                f"dequantize is a {type(dequantize).__name__}, but must be a Dequantize"
            )
        self.transform = transform
        self.base = base
        self.dequantize = dequantize

    def forward(self, x: Any, *context: Any, **named: Any) -> Tensor:
        """Return `log_prob`, so that the flow can be wrapped in DDP."""
        return self.log_prob(x, *context, **named)

    def log_prob(
        self,
        x: Any,
        *context: Any,
        generator: torch.Generator | None = None,
        **named: Any,
    ) -> Tensor:
        r"""Return $\ln p(x)$, one number for each sample.

        With dequantization it is the lower bound of $\ln P(x)$ for one draw of noise.

        Args:
            x: The data.
            context: What the density is conditioned on.
            generator: The source of noise, with dequantization.
            named: The context, by keyword.

        Raises:
            RuntimeError: If a layer returns a log-determinant that is not of shape
                `(batch,)`.
            TypeError: If the latent variable is complex.
            ValueError: If the base has another shape than the latent variable.
        """
        own, of_base = self._shared(named)
        quantization = None
        if self.dequantize is not None:
            x, quantization = self.dequantize(x, generator), self.dequantize.log_det(x)
        z, log_det = self.transform.forward_and_log_det(x, *context, **own)
        check_log_det(type(self.transform).__name__, log_det, z)
        log_prob = self._log_prob_of_base(z, context, of_base) + log_det
        return log_prob if quantization is None else log_prob + quantization

    def to_latent(
        self,
        x: Any,
        *context: Any,
        generator: torch.Generator | None = None,
        **named: Any,
    ) -> Any:
        """Return the latent variables of data, $f(x)$.

        Args:
            x: The data.
            context: What the density is conditioned on.
            generator: The source of noise, with dequantization.
            named: The context, by keyword.
        """
        own, _ = self._shared(named)
        x = x if self.dequantize is None else self.dequantize(x, generator)
        return self.transform(x, *context, **own)

    def sample(
        self,
        count: int,
        *context: Any,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        **named: Any,
    ) -> Any:
        r"""Draw samples, $x = f^{-1}(z)$ with $z$ of the base.

        Args:
            count: How many; with context, how many for each entry of its batch.
            context: What the density is conditioned on. Its tensors have a batch axis,
                but for those without axes.
            temperature: A factor of the standard deviation of the base.
            generator: The source of random numbers.
            named: The context, by keyword.

        Returns:
            `(count, ...)`; with context, `(batch, count, ...)`. They are differentiable
            by the parameters of the base, but for a distribution of PyTorch without
            `rsample`.

        Raises:
            TypeError: If `temperature` is not a number, or `generator` none of PyTorch.
            ValueError: If `temperature` is negative or infinite, or it is not 1 and the
                base is not one of `invtorch.flows`.
        """
        options = {"temperature": temperature, "generator": generator}
        z, repeated, batch = self._draw(count, context, named, options)
        args, own, _ = repeated
        x = self.transform.inverse(z, *args, **own)
        x = x if self.dequantize is None else self.dequantize.inverse(x)
        return _per_context(x, batch, count)

    def sample_and_log_prob(
        self,
        count: int,
        *context: Any,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        **named: Any,
    ) -> tuple[Any, Tensor]:
        r"""Draw samples, and return $\ln p$ of each as `log_prob` would.

        The inverse is evaluated once. The density is the one at temperature 1.

        Raises:
            ValueError: See `sample`; or if the flow has a dequantization, whose noise
                is not known from a sample.
        """
        if self.dequantize is not None:
            raise ValueError(
                "a flow with dequantization has no density of one sample without its "
                "noise: call `sample`, then `log_prob`"
            )
        options = {"temperature": temperature, "generator": generator}
        z, (args, own, of_base), batch = self._draw(count, context, named, options)
        x, log_det = self.transform.inverse_and_log_det(z, *args, **own)
        check_log_det(type(self.transform).__name__, log_det, x)
        log_prob = self._log_prob_of_base(z, args, of_base) - log_det
        return _per_context(x, batch, count), _per_context(log_prob, batch, count)

    def bits_per_dim(self, x: Any, *context: Any, **named: Any) -> Tensor:
        r"""Return $-\log_2 p(x) / D$ for each sample with $D$ entries.

        With dequantization it is an upper bound of the bits that a code for $x$ needs.
        """
        log_prob = self.log_prob(x, *context, **named)
        tensors = x if isinstance(x, tuple) else (x,)
        entries = sum(t.shape[1:].numel() for t in tensors)
        bits: Tensor = -log_prob / (entries * math.log(2))
        return bits

    def _shared(self, named: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the keyword context of the network, and that of the base."""
        base = self.base
        of_base = base._keywords() if isinstance(base, Base) else frozenset[str]()
        takers = [self.transform._keywords(), of_base]
        check_keywords(type(self).__name__, named, all_keywords(takers))
        return [dict(taken(names, named)) for names in takers]

    def _log_prob_of_base(
        self, z: Any, context: tuple[Any, ...], named: dict[str, Any]
    ) -> Tensor:
        log_prob: Tensor
        if isinstance(self.base, Base):
            log_prob = self.base.log_prob(z, *context, **named)
        else:
            check_latent(
                self.base, z, [(*self.base.batch_shape, *self.base.event_shape)]
            )
            log_prob = self.base.log_prob(z)
        if log_prob.ndim > 1:  # one number for each entry
            log_prob = log_prob.flatten(1).sum(1)
        return log_prob

    def _draw(
        self,
        count: int,
        context: tuple[Any, ...],
        named: dict[str, Any],
        options: dict[str, Any],
    ) -> tuple[Any, Any, int | None]:
        """Return latent variables, the repeated context and its batch size, if any.

        The context is the positional one, and the keyword ones of network and base.
        """
        check_count("count", count)
        check_generator(options["generator"])
        _check_temperature(options["temperature"])
        batch = _batch_of((context, named))
        total = count if batch is None else count * batch
        repeated: Any = map_tensors(
            lambda t: t.repeat_interleave(count, 0) if t.ndim else t,
            (context, *self._shared(named)),
        )
        args, _, keywords = repeated
        if isinstance(self.base, Base):
            z = self.base.sample(total, *args, **options, **keywords)
        else:
            z = _draw_from(self.base, total, options)
        return z, repeated, batch


def _draw_from(base: Distribution, total: int, options: dict[str, Any]) -> Tensor:
    for name, usual in (("temperature", 1.0), ("generator", None)):
        if options[name] != usual:
            raise ValueError(
                f"{name} is {options[name]}, which a torch.distributions.Distribution "
                f"does not take: use a base of invtorch.flows"
            )
    size = torch.Size([total])
    if base.has_rsample:
        return base.rsample(size)
    with torch.no_grad():
        drawn: Tensor = base.sample(size)
    return drawn


def _check_temperature(temperature: Any) -> None:
    if not (isinstance(temperature, Tensor) and temperature.ndim == 0):
        check_number("temperature", temperature)
    if not 0 <= temperature < math.inf:  # which does not hold for NaN
        raise ValueError(
            f"temperature is {temperature}, but must be at least 0 and finite"
        )


def _batch_of(context: Any) -> int | None:
    """Return the length of the first axis of all tensors of a context, if any."""
    sizes = sorted({len(t) for t in tensors_in(context) if t.ndim})
    if len(sizes) > 1:
        raise ValueError(
            f"the tensors of the context have {sizes} entries along their first axis: "
            f"give all of them the same batch"
        )
    return sizes[0] if sizes else None


def _per_context(samples: Any, batch: int | None, count: int) -> Any:
    """Give samples an axis for the context and one for its samples."""
    if batch is None:
        return samples
    return map_tensors(lambda t: t.unflatten(0, (batch, count)), samples)
