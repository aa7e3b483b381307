"""The guard of a pass: it compares rebuilt states with those of the forward pass.

It takes a mark of every state in the forward pass and of every rebuilt state in the
backward pass. On an accelerator the marks stay on the device and are read once, at the
end of the backward pass.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from invtorch._torch import backward_id
from invtorch.engine.guard.anchors import Anchors
from invtorch.engine.guard.end_of_backward import at_end_of_backward
from invtorch.engine.guard.fingerprint import mark, projections
from invtorch.engine.guard.measurement import Measured, appeared, runs, until_first
from invtorch.engine.guard.tolerance import (
    distance,
    growth_of,
    relative_error,
    scale_of,
    tolerance,
)
from invtorch.precision import eps_of

Tensors: TypeAlias = tuple[Tensor, ...]
GUARDS = ("raise", "warn", "adapt", None)
NOT_REPEATED = (
    "The layer draws random numbers of its own, or reads something that changed since "
    "the forward pass (a fused optimizer that stepped, for instance): pass it as "
    "context, register it as a buffer, or step after backward."
)
WRONG_INVERSE = (
    "The error appears there at once: the inverse is wrong or loses digits, the layer "
    "jumps at such a state (as `F.normalize` at zero), draws random numbers of its own "
    "or reads something that changed since the forward pass (a fused optimizer that "
    'stepped, for instance). Set `layer.memory = "checkpoint"` to keep its input.'
)
AMPLIFIED = (
    'Rounding was amplified layer by layer: set `anchors="auto"` (which also learns '
    "from this pass), a finer `state_dtype=`, or bound the scale of the conditioners; "
    "`invtorch.diagnose` shows where it grows."
)


class DriftError(RuntimeError):
    """A rebuilt state differs from that of the forward pass, or is not finite.

    It is raised at the end of the backward pass, after gradients were accumulated. Do
    not step the optimizer with them. To skip the batch, catch the error and clear the
    gradients.

    Examples:
        >>> from torch import nn
        >>> from invtorch import AdditiveCoupling, DriftError, InvertibleSequential
        >>> net = InvertibleSequential(AdditiveCoupling(nn.Conv2d(1, 1, 1)))
        >>> _ = nn.init.constant_(net[0].conditioner.weight, float("inf"))
        >>> try:
        ...     net(torch.ones(1, 2, 4, 4)).sum().backward()
        ... except DriftError:
        ...     net.zero_grad()  # continue with the next batch
    """


class DriftWarning(UserWarning):
    """The warning with the message of `DriftError`, for `guard="warn"` and `"adapt"`.

    It means that the gradients of this backward pass are wrong. A state that grows so
    much that plain autograd loses digits too only causes a plain `UserWarning`.

    Examples:
        >>> import warnings
        >>> from invtorch import DriftWarning
        >>> warnings.simplefilter("error", DriftWarning)  # raises as DriftError does
    """


class Guard:
    """Compares the states of one pass at the end of each backward pass.

    Args:
        policy: One of `GUARDS`; with `None` the anchors are updated, and nothing is
            raised or warned.
        anchors: The anchors of the container, which are updated from the errors.
    """

    def __init__(self, policy: str | None, anchors: Anchors) -> None:
        self.policy = policy
        self.anchors = anchors
        self.labels: list[str] = []
        self.eps: list[float] = []
        self.marks: list[tuple[Any, Any]] = []
        self.compared: dict[int, list[tuple[int, int, Any]]] = {}
        self.dtype = torch.float32

    def begin(self, state: Tensors) -> None:
        """Take the mark of the input of a pass."""
        self.dtype = max((t.dtype for t in state), key=eps_of)
        self.marks.append(mark(state))

    def take(self, label: str, dtypes: Iterable[torch.dtype], output: Tensors) -> None:
        """Take the mark of the output of the next layer of the forward pass.

        Args:
            label: The name of the layer in messages.
            dtypes: The floating dtypes in which it computes.
            output: Its output.
        """
        self.labels.append(label)
        self.eps.append(max(map(eps_of, (self.dtype, *dtypes))))
        self.marks.append(mark(output))

    def compare(self, layer: int, index: int, state: Tensors) -> None:
        """Take the mark of a state of the backward pass.

        Args:
            layer: The layer that was inverted, or evaluated again.
            index: The index of the state: the input of that layer, or its output.
            state: The state.
        """
        task = backward_id()
        one = layer, index, projections(state)
        if task in self.compared:
            self.compared[task].append(one)
        else:
            self.compared[task] = [one]
            at_end_of_backward(functools.partial(self.evaluate, task))

    def evaluate(self, task: int) -> None:
        """Evaluate the marks of one backward pass, and raise or warn."""
        compared = self.compared.pop(task)
        sizes = _table([norms for _, norms in self.marks])
        finite = sizes.isfinite().all(1).tolist()
        if not all(finite):
            self._raise_or_warn(self._not_finite(finite.index(False)))
            return
        measured = self._measure(compared, sizes)
        self.anchors.learn(measured, eps_of(self.dtype))
        growth = float(growth_of(sizes))
        breaches = self._breaches(measured, growth)
        if breaches:
            self._raise_or_warn(*self._message(breaches, growth))
        else:
            self._check_growth(torch.linalg.vector_norm(sizes, dim=1).tolist())

    def _measure(
        self, compared: list[tuple[int, int, Any]], sizes: Tensor
    ) -> list[Measured]:
        layers, indices, rebuilt = zip(*compared, strict=True)
        expected = _table([self.marks[index][0] for index in indices])
        distances = distance(_table(rebuilt), expected)
        first, none = torch.tensor(layers, device="cpu"), torch.zeros_like(sizes[0])
        scales = scale_of(sizes[first], sizes[first + 1], none)
        zeros = not bool((scales > 0).all())
        measured: list[Measured] = []
        for i, (layer, index) in enumerate(zip(layers, indices, strict=True)):
            one = Measured(layer, index, 0.0, self.eps[layer])
            if measured and one.follows(measured[-1]):
                one = one._replace(eps=max(one.eps, measured[-1].eps))
                if zeros:
                    scales[i] = scale_of(scales[i], scales[i], scales[i - 1])
            measured.append(one)
        errors = relative_error(distances, scales).amax(1).tolist()
        return [one._replace(error=e) for one, e in zip(measured, errors, strict=True)]

    def _breaches(
        self, measured: list[Measured], growth: float
    ) -> list[list[Measured]]:
        """Return for each error beyond the tolerance the run that ends with it."""
        eps = eps_of(self.dtype)
        allowed = {n: tolerance(eps, n, growth) for n in {m.eps for m in measured}}

        def out_of_bounds(one: Measured) -> bool:
            bound = allowed[one.eps] if one.rebuilt else tolerance(eps, one.eps)
            return not one.error <= bound

        led = [until_first(run, out_of_bounds) for run in runs(measured)]
        again = [[one] for one in measured if not one.rebuilt and out_of_bounds(one)]
        return again + [run for run in led if run]

    def _raise_or_warn(self, message: str, remedied: bool = False) -> None:
        if self.policy == "raise" or (self.policy == "adapt" and not remedied):
            raise DriftError(message)
        if self.policy is not None:
            warnings.warn(message, DriftWarning, stacklevel=2)

    def _not_finite(self, first: int) -> str:
        if first == 0:
            return "the input of the container contains NaN or Inf: check the data"
        return (
            f"{self.labels[first - 1]} made NaN or Inf of a finite state (or its norm "
            f"overflows {self.dtype}): do not step with these gradients; bound its "
            f"conditioner, or lower the learning rate"
        )

    def _message(
        self, breaches: list[list[Measured]], growth: float
    ) -> tuple[str, bool]:
        """Return the message about the breaches, and whether anchors were added."""
        eps, last = eps_of(self.dtype), breaches[0][-1]
        usual = allowed = tolerance(eps, last.eps)
        if last.rebuilt:
            allowed = tolerance(eps, last.eps, growth)
        suspect = appeared(breaches[0], last.eps, usual)
        worst = suspect or last
        label = self.labels[worst.layer]
        if not last.rebuilt:
            what, why = f"the output of {label}, evaluated again,", NOT_REPEATED
        else:
            what = f"the state rebuilt by inverting {label}"
            why = WRONG_INVERSE if suspect else AMPLIFIED
        remedied, remedy = False, ""
        if self.policy == "adapt" and all(run[-1].rebuilt for run in breaches):
            added = self.anchors.add(len(self.labels), breaches, last.eps, usual)
            remedied, remedy = True, f" From now on {added} are kept as anchors too."
        off = (
            f"is off by {worst.error:.1e} of its size "
            f"({_in_eps(worst.error, self.dtype)}), where {allowed:.1e} is allowed"
        )
        if allowed < usual:
            off += f", since the state grows or shrinks by {growth:.1e}"
        if not math.isfinite(worst.error):
            off = "is not finite, or differs where there were zeros or integers"
        return (
            f"{what} {off}: do not step with the gradients of this backward pass. "
            f"{why}{remedy}"
        ), remedied

    def _check_growth(self, sizes: list[float]) -> None:
        positive = [size for size in sizes if size > 0]
        growth = max(positive, default=1.0) / min(positive, default=1.0)
        eps = max(self.eps)  # 0 where all states are integers
        limit = eps**-0.5 if eps else math.inf
        if growth > max(limit, 10 * self.anchors.growth) and self.policy is not None:
            self.anchors.growth = growth  # warn again if it grows by 10 times more
            warnings.warn(
                f"the state grows or shrinks by {growth:.1e} over {len(self.labels)} "
                f"layers, where plain autograd loses digits too: bound the scale of "
                f"the conditioners",
                stacklevel=2,
            )


def _in_eps(error: float, dtype: torch.dtype) -> str:
    eps = eps_of(dtype)
    return f"{error / eps:.3g} eps of {dtype}" if eps else f"of {dtype}"


def _table(rows: Sequence[Any]) -> Tensor:
    """Stack rows in one tensor on the CPU; waits once for rows on a device."""
    if isinstance(rows[0], Tensor):
        return torch.stack(list(rows)).cpu().double()
    return torch.tensor(rows, dtype=torch.float64, device="cpu")
