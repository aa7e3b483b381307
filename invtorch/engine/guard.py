"""The guard: does a rebuilt state agree with the one of the forward pass?

It takes a fingerprint of every state in the forward pass and of every rebuilt state in
the backward pass. On an accelerator they stay on the device and are read once, at the
end of the backward pass.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from invtorch.engine.anchors import Anchors
from invtorch.engine.drift import (
    Measured,
    appeared,
    eps_of,
    growth_of,
    runs,
    tolerance,
    until_first,
)
from invtorch.engine.fingerprint import distance, fingerprint, size
from invtorch.engine.pure_frame import AnyFrame
from invtorch.engine.replayed import Tensors
from invtorch.engine.reports import at_the_end, backward_pass

GUARDS = ("raise", "warn", "adapt", None)
NOT_REPEATED = (
    "The layer draws random numbers of its own, or reads something that changed since "
    "the forward pass: hand randomness and state in as context or buffers."
)
WRONG_INVERSE = (
    "The error appears there at once: its inverse is wrong, or cannot bring back what "
    "the forward direction made small; or the layer draws random numbers of its own, "
    "or reads something that changed since the forward pass. `layer.memory = "
    '"checkpoint"` keeps its input.'
)
AMPLIFIED = (
    'Rounding was amplified layer by layer: keep more states (`anchors="auto"` learns '
    "where, also from a pass that is refused), keep the state in higher precision "
    "(`state_dtype=`), or bound the scale of the conditioners; `invtorch.diagnose` "
    "shows where it grows."
)


class DriftError(RuntimeError):
    """A rebuilt state was not that of the forward pass, or a layer made NaN or Inf.

    It comes at the end of the backward pass, when gradients are filled in: do not step
    with them. To go on without this batch, catch it and clear the gradients.

    Examples:
        >>> from torch import nn
        >>> from invtorch import AdditiveCoupling, DriftError, InvertibleSequential
        >>> net = InvertibleSequential(AdditiveCoupling(nn.Conv2d(1, 1, 1)))
        >>> _ = nn.init.constant_(net[0].conditioner.weight, float("inf"))
        >>> try:
        ...     net(torch.ones(1, 2, 4, 4)).sum().backward()
        ... except DriftError:
        ...     net.zero_grad()  # and on with the next batch
    """


class Guard:
    """Compares the states of one pass, and speaks at the end of each backward pass.

    Args:
        policy: One of `GUARDS`; with `None` the anchors learn and nothing is said.
        anchors: The anchors of the container, which learn from what is measured.
    """

    def __init__(self, policy: str | None, anchors: Anchors) -> None:
        self.policy = policy
        self.anchors = anchors
        self.frames: list[AnyFrame] = []
        self.sizes: list[Any] = []
        self.taken: list[Any] = []
        self.compared: dict[int, list[tuple[int, int, Any]]] = {}
        self.dtype = torch.float32

    def take(self, state: Tensors) -> None:
        """Keep the fingerprint of the next state of the forward pass."""
        if not self.taken:
            self.dtype = max((t.dtype for t in state), key=eps_of)
        self.taken.append(_read(fingerprint(state)))
        self.sizes.append(_read(size(state)))

    def compare(self, layer: int, index: int, state: Tensors) -> None:
        """Keep the fingerprint of a state of the backward pass."""
        task = backward_pass()
        one = layer, index, _read(fingerprint(state))
        if task in self.compared:
            self.compared[task].append(one)
        else:
            self.compared[task] = [one]
            at_the_end(functools.partial(self.speak, task))

    def speak(self, task: int) -> None:
        """Judge what was compared in one backward pass, and raise or warn."""
        compared = self.compared.pop(task)
        sizes: list[list[float]] = _values(self.sizes)
        if not all(map(_finite, sizes)):
            self._tell(self._not_finite(sizes))
            return
        precisions = self._precisions()
        measured = self._measure(compared, sizes, precisions)
        self.anchors.learn(measured, eps_of(self.dtype))
        whole = [math.hypot(*parts) for parts in sizes]
        growth = growth_of(whole)
        found = self._breaches(measured, growth)
        if found:
            self._tell(*self._judged(found, growth))
        else:
            self._check_growth(whole, max(precisions))

    def _measure(
        self,
        compared: list[tuple[int, int, Any]],
        sizes: list[list[float]],
        precisions: list[float],
    ) -> list[Measured]:
        taken = _values(self.taken)
        found = _values([value for _, _, value in compared])
        measured: list[Measured] = []
        scales: list[float] = []
        for (layer, index, _), value in zip(compared, found, strict=True):
            one = Measured(layer, index, 0.0, precisions[layer])
            own = [*map(max, sizes[layer], sizes[layer + 1])]
            if measured and one.follows(measured[-1]):
                one = one.after(measured[-1])
                # where zeros are handed on, rounding is that of the states above
                own = [s or above for s, above in zip(own, scales, strict=True)]
            scales = own
            error = max(map(_ratio, map(distance, taken[index], value), scales))
            measured.append(one._replace(error=error))
        return measured

    def _precisions(self) -> list[float]:
        """Return for each layer the eps of the coarsest dtype that it computes in."""
        used = ((self.dtype, *frame.precisions()) for frame in self.frames)
        return [max(map(eps_of, dtypes)) for dtypes in used]

    def _breaches(
        self, measured: list[Measured], growth: float
    ) -> list[list[Measured]]:
        """Return what led to each error out of bounds, the error being the last."""
        eps = eps_of(self.dtype)
        allowed = {n: tolerance(eps, n, growth) for n in {m.noise for m in measured}}

        def out_of_bounds(one: Measured) -> bool:
            bound = allowed[one.noise] if one.rebuilt else tolerance(eps, one.noise)
            return not one.error <= bound

        led = [until_first(run, out_of_bounds) for run in runs(measured)]
        again = [[one] for one in measured if not one.rebuilt and out_of_bounds(one)]
        return again + [run for run in led if run]

    def _tell(self, message: str, remedied: bool = False) -> None:
        if self.policy == "raise" or (self.policy == "adapt" and not remedied):
            raise DriftError(message)
        if self.policy is not None:
            warnings.warn(message, stacklevel=2)

    def _not_finite(self, sizes: list[list[float]]) -> str:
        first = next(i for i, s in enumerate(sizes) if not _finite(s))
        if first == 0:
            return "the input of the container has NaN or Inf"
        return (
            f"{self.frames[first - 1].label} made NaN or Inf of a finite state (or its "
            f"norm is beyond the range of {self.dtype}): do not step with these "
            f"gradients; bound what its conditioner returns, or lower the learning rate"
        )

    def _judged(self, found: list[list[Measured]], growth: float) -> tuple[str, bool]:
        """Return what to say of the breaches, and whether a remedy was taken."""
        eps, last = eps_of(self.dtype), found[0][-1]
        usual = allowed = tolerance(eps, last.noise)
        if last.rebuilt:
            allowed = tolerance(eps, last.noise, growth)
        suspect = appeared(found[0], last.noise, usual)
        worst = suspect or last
        label = self.frames[worst.layer].label
        if not last.rebuilt:
            what, why = f"the output of {label}, evaluated again,", NOT_REPEATED
        else:
            what = f"the state rebuilt by inverting {label}"
            why = WRONG_INVERSE if suspect else AMPLIFIED
        remedied, remedy = False, ""
        if self.policy == "adapt" and all(run[-1].rebuilt for run in found):
            added = self.anchors.add(len(self.frames), found, last.noise, usual)
            remedied, remedy = True, f" From now on {added} are kept as anchors too."
        off = (
            f"is off by {worst.error:.1e} of its size "
            f"({worst.error / eps:.3g} eps of {self.dtype}), where {allowed:.1e} is "
            f"allowed"
        )
        if allowed < usual:
            off += f", since the state grows or shrinks by {growth:.1e} on its way"
        if not math.isfinite(worst.error):
            off = "is not finite, or differs where there were zeros or integers before"
        return (
            f"{what} {off}: do not step with the gradients of this backward pass. "
            f"{why}{remedy}"
        ), remedied

    def _check_growth(self, sizes: list[float], coarsest: float) -> None:
        positive = [size for size in sizes if size > 0]
        growth = max(positive, default=1.0) / min(positive, default=1.0)
        limit = coarsest**-0.5
        if growth > max(limit, 10 * self.anchors.growth) and self.policy is not None:
            self.anchors.growth = growth  # said once, until it is another magnitude
            warnings.warn(
                f"the state grows or shrinks by {growth:.1e} on its way through "
                f"{len(self.frames)} layers: even plain autograd loses digits there; "
                f"bound the scale of the conditioners",
                stacklevel=2,
            )


def _finite(sizes: list[float]) -> bool:
    return all(map(math.isfinite, sizes))


def _ratio(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale and math.isfinite(difference) else math.inf


def _read(values: Tensor) -> Any:
    """Return numbers where they can be had at once, else the tensor that has them."""
    return values.tolist() if values.device.type == "cpu" else values


def _values(taken: list[Any]) -> list[Any]:
    """Read what is still on the device, waiting for it once."""
    if taken and isinstance(taken[0], Tensor):
        return torch.stack(taken).tolist()
    return taken
