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
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from invtorch._torch import backward_id
from invtorch.engine.guard.anchors import Anchors
from invtorch.engine.guard.blocks import Blocks, blocks_of, names_of
from invtorch.engine.guard.end_of_backward import at_end_of_backward
from invtorch.engine.guard.fingerprint import fingerprint, mark, uncounted
from invtorch.engine.guard.measurement import Measured, appeared, runs, until_first
from invtorch.engine.guard.tolerance import (
    distance,
    floors_of,
    growth_of,
    owners,
    relative_error,
    tolerance,
    whole_norms,
)
from invtorch.precision import eps_of

Tensors: TypeAlias = tuple[Tensor, ...]
GUARDS = ("raise", "warn", "adapt", None)
NOT_REPEATED = (
    "The layer draws random numbers of its own, or reads something that changed since "
    "the forward pass: pass it as context, or register it as a buffer."
)
WRONG_INVERSE = (
    "The error appears there at once: the inverse is wrong or loses digits, or the "
    "layer draws random numbers of its own or reads something that changed since the "
    'forward pass. Set `layer.memory = "checkpoint"` to keep its input.'
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
        self.parts: list[tuple[Blocks, ...]] = []
        self.marks: list[Tensor] = []
        self.compared: dict[int, list[tuple[int, int, Tensor]]] = {}
        self.dtype = torch.float32

    def begin(self, state: Tensors) -> None:
        """Take the mark of the input of a pass."""
        self.dtype = max((t.dtype for t in state), key=eps_of)
        self._mark(state)

    def take(self, label: str, dtypes: Iterable[torch.dtype], output: Tensors) -> None:
        """Take the mark of the output of the next layer of the forward pass.

        Args:
            label: The name of the layer in messages.
            dtypes: The floating dtypes in which it computes.
            output: Its output.
        """
        self.labels.append(label)
        self.eps.append(max(map(eps_of, (self.dtype, *dtypes))))
        self._mark(output)

    def compare(self, layer: int, index: int, state: Tensors) -> None:
        """Take the mark of a state of the backward pass.

        Args:
            layer: The layer that was inverted, or evaluated again.
            index: The index of the state: the input of that layer, or its output.
            state: The state.
        """
        task = backward_id()
        one = layer, index, _kept(fingerprint(state))
        if task in self.compared:
            self.compared[task].append(one)
        else:
            self.compared[task] = [one]
            at_end_of_backward(functools.partial(self.evaluate, task))

    def evaluate(self, task: int) -> None:
        """Evaluate the marks of one backward pass, and raise or warn."""
        compared, table = self.compared.pop(task), _table(self.marks)
        counts = [blocks.count for parts in self.parts for blocks in parts]
        arities = [*map(len, self.parts)]
        norms = whole_norms(table[:, -1], counts).split(arities)
        sizes = pad_sequence(list(norms), batch_first=True)  # a missing tensor is 0
        finite = sizes.isfinite().all(1).tolist()
        if not all(finite):
            self._raise_or_warn(self._not_finite(finite.index(False)))
            return
        rows = zip(floors_of(sizes, len({*arities}) > 1), arities, strict=True)
        floors = torch.cat([row[:n] for row, n in rows])[owners(counts, sizes.device)]
        measured = self._measure(compared, table, floors)
        self.anchors.learn(measured, eps_of(self.dtype))
        growth = float(growth_of(sizes))
        breaches = self._breaches(measured, growth)
        if breaches:
            self._raise_or_warn(*self._message(breaches, growth))
        else:
            self._check_growth(torch.linalg.vector_norm(sizes, dim=1).tolist())

    def _mark(self, state: Tensors) -> None:
        self.parts.append(tuple(map(blocks_of, state)))
        self.marks.append(_kept(mark(state)))

    def _measure(
        self, compared: list[tuple[int, int, Tensor]], table: Tensor, floors: Tensor
    ) -> list[Measured]:
        layers, indices, rebuilt = zip(*compared, strict=True)
        blocks = [len(mark) for mark in self.marks]
        scales = torch.where(table[:, -1] > 0, table[:, -1], floors).split(blocks)
        expected = table[:, :-1].split(blocks)
        errors = relative_error(
            distance(_table(rebuilt), torch.cat([expected[i] for i in indices])),
            torch.cat([scales[i] for i in indices]),
        ).split([blocks[i] for i in indices])
        largest, places = pad_sequence(list(errors), batch_first=True).max(1)
        measured: list[Measured] = []
        for layer, index, error, place in zip(
            layers, indices, largest.tolist(), places.tolist(), strict=True
        ):
            one = Measured(layer, index, error, self.eps[layer], place)
            if measured and one.follows(measured[-1]):
                one = one._replace(eps=max(one.eps, measured[-1].eps))
            measured.append(one)
        return measured

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
        label = self.labels[(suspect or last).layer]
        if not last.rebuilt:
            what, why = f"the output of {label}, evaluated again,", NOT_REPEATED
        else:
            what = f"the state rebuilt by inverting {label}"
            why = WRONG_INVERSE if suspect else AMPLIFIED
        remedied, remedy = False, ""
        if self.policy == "adapt" and all(run[-1].rebuilt for run in breaches):
            added = self.anchors.add(len(self.labels), breaches, last.eps, usual)
            remedied, remedy = True, f" From now on {added} are kept as anchors too."
        off = self._off(suspect or last, last)
        if allowed < usual:
            why = f"Less is allowed since the state grows or shrinks by {growth:.1e}. {why}"
        return (
            f"{what} {off}, where {allowed:.1e} is allowed: do not step with the "
            f"gradients of this backward pass. {why}{remedy}"
        ), remedied

    def _off(self, first: Measured, last: Measured) -> str:
        """Return by how much a state was off, and where it broke the limit."""
        where = names_of(self.parts[last.state], last.block)
        size = f"the size of {where}" if where else "its size"
        if not math.isfinite(last.error):
            off = "is not finite, or differs where there were zeros or integers"
            return off + (f" ({where})" if where else "")
        off = f"{last.error:.1e} of {size} ({self._in_eps(last)})"
        if first is last:
            return f"is off by {off}"
        return f"is off by {first.error:.1e}, and that of {self.labels[last.layer]} by {off}"

    def _in_eps(self, one: Measured) -> str:
        return f"{one.error / eps_of(self.dtype):.3g} eps of {self.dtype}"

    def _check_growth(self, sizes: list[float]) -> None:
        positive = [size for size in sizes if size > 0]
        growth = max(positive, default=1.0) / min(positive, default=1.0)
        limit = max(self.eps) ** -0.5
        if growth > max(limit, 10 * self.anchors.growth) and self.policy is not None:
            self.anchors.growth = growth  # warn again if it grows by 10 times more
            warnings.warn(
                f"the state grows or shrinks by {growth:.1e} over {len(self.labels)} "
                f"layers, where plain autograd loses digits too: bound the scale of "
                f"the conditioners",
                stacklevel=2,
            )


def _kept(numbers: Tensor) -> Tensor:
    """Return numbers of a state, on the CPU in memory that is not counted."""
    return uncounted(numbers) if numbers.device.type == "cpu" else numbers


def _table(rows: Sequence[Tensor]) -> Tensor:
    """Join rows in one tensor on the CPU; waits once for rows on a device."""
    return torch.cat(list(rows)).cpu().double()
