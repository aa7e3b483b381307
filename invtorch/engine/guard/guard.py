"""The guard of a pass: it compares rebuilt states with those of the forward pass.

It takes a mark of every state in the forward pass and of every rebuilt state in the
backward pass. On an accelerator the marks stay on the device and are read once, at the
end of the backward pass.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from invtorch._torch import backward_id, plain_tensors, unseen_by_modes
from invtorch.engine.guard.anchors import BUDGET, Anchors
from invtorch.engine.guard.blocks import Blocks, blocks_of_shape, names_of
from invtorch.engine.guard.end_of_backward import at_end_of_backward
from invtorch.engine.guard.fingerprint import Last, fingerprint, norms_of
from invtorch.engine.guard.marks import Marks
from invtorch.engine.guard.measurement import Measured, appeared, runs, until_first
from invtorch.engine.guard.tolerance import (
    distance,
    floors_of,
    for_each_block,
    growth_of,
    least_share,
    relative_error,
    sizes_of_samples,
    tolerance,
    whole_norms,
)
from invtorch.precision import eps_of

Tensors: TypeAlias = tuple[Tensor, ...]
GuardPolicy: TypeAlias = Literal["raise", "warn", "adapt"]
GUARDS = (*get_args(GuardPolicy), None)
CPU = torch.device("cpu")
# Elements of a state for each row of marks that is compared at once: to compare them
# takes a small part of the memory of a state, whatever the depth.
SHARE = 512
ROWS = 32  # the least number of rows that are compared at once
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


class Layout(NamedTuple):
    """How the tensors of a state are divided.

    Attributes:
        parts: The blocks of each tensor.
        counts: The number of blocks of each.
        rows: The number of all blocks.
        exact: For each tensor, whether it has integers, which are not rounded.
    """

    parts: tuple[Blocks, ...]
    counts: tuple[int, ...]
    rows: int
    exact: tuple[bool, ...]


@functools.lru_cache(maxsize=1024)
def _layout(*tensors: tuple[torch.Size, torch.dtype]) -> Layout:
    """Return the layout of a state of tensors of these shapes and dtypes."""
    parts = tuple(blocks_of_shape(shape) for shape, _ in tensors)
    exact = tuple(not (d.is_floating_point or d.is_complex) for _, d in tensors)
    counts = tuple(blocks.number for blocks in parts)
    return Layout(parts, counts, sum(counts), exact)


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
        self.computed: list[Collection[torch.dtype]] = []
        self.layouts: list[Layout] = []
        self.marks = Marks()
        self.mark, self.fingerprint = Last(fingerprint), Last(fingerprint)
        self.compared: dict[int, tuple[list[tuple[int, int]], Marks]] = {}
        self.dtype = torch.float32
        self.most = ROWS

    def begin(self, state: Tensors) -> None:
        """Take the mark of the input of a pass."""
        self.dtype = max((t.dtype for t in _plain(state)), key=eps_of)
        self.most = max(ROWS, sum(t.numel() for t in state) // SHARE)
        self._mark(state)

    def take(
        self, label: str, dtypes: Collection[torch.dtype], output: Tensors
    ) -> None:
        """Take the mark of the output of the next layer of the forward pass.

        Args:
            label: The name of the layer in messages.
            dtypes: The floating dtypes in which it computes.
            output: Its output.
        """
        self.labels.append(label)
        self.computed.append(dtypes)
        self._mark(output)

    def end(self) -> None:
        """End the forward pass."""
        self.mark.forget()

    def compare(self, layer: int, index: int, state: Tensors) -> None:
        """Take the mark of a state of the backward pass.

        Args:
            layer: The layer that was inverted, or evaluated again.
            index: The index of the state: the input of that layer, or its output.
            state: The state.
        """
        task = backward_id()
        if task not in self.compared:
            self.compared[task] = [], Marks()
            at_end_of_backward(functools.partial(self.evaluate, task))
        places, marks = self.compared[task]
        with unseen_by_modes():
            marks.append(self.fingerprint(_plain(state)))
        places.append((layer, index))

    def evaluate(self, task: int) -> None:
        """Evaluate the marks of one backward pass, and raise or warn."""
        self.fingerprint.forget()
        (places, rebuilt), marks = self.compared.pop(task), self.marks.read()
        sizes = self._sizes(marks)
        finite = sizes.isfinite().all(1).tolist()
        if not all(finite):
            self._raise_or_warn(self._not_finite(finite.index(False)))
            return
        growth = float(growth_of(sizes))
        floors = self._floors(sizes)
        measured = self._measure(places, rebuilt.read(), marks, floors, growth)
        if self.anchors.requested == "auto":
            planned = [self._planned(one, growth) for one in measured]
            self.anchors.learn(planned, eps_of(self.dtype))
        breaches = self._breaches(measured, growth)
        if breaches:
            self._raise_or_warn(*self._message(breaches, growth))
        else:
            self._check_growth(growth)

    def _mark(self, state: Tensors) -> None:
        plain = _plain(state)
        self.layouts.append(_layout(*((t.shape, t.dtype) for t in plain)))
        with unseen_by_modes():
            self.marks.append(self.mark(plain))

    def _counts(self, indices: Iterable[int]) -> list[int]:
        return [count for i in indices for count in self.layouts[i].counts]

    def _few(self, states: Sequence[int]) -> Iterator[range]:
        """Divide the places of a list of states, so that no division has many rows.

        The memory of a comparison must not grow with the depth.
        """
        first = rows = 0
        for place, state in enumerate(states):
            rows += self.layouts[state].rows
            if rows > self.most and place > first:
                yield range(first, place)
                first, rows = place, self.layouts[state].rows
        yield range(first, len(states))

    def _sizes(self, marks: Sequence[Tensor]) -> Tensor:
        """Return the norms of the tensors of all states, shape `(states, tensors)`.

        Where a state has fewer tensors than another one, the norms end with zeros.
        """
        sizes = [
            whole_norms(self._norms(marks, some), self._counts(some))
            for some in self._few(range(len(marks)))
        ]
        return _rows(torch.cat(sizes), self._arities)

    def _norms(self, marks: Sequence[Tensor], states: Sequence[int]) -> Tensor:
        """Return the norms of the blocks of some states.

        Those of integers are zero, because they must be rebuilt exactly.
        """
        norms = norms_of(torch.cat([marks[i] for i in states]))
        exact = [exact for i in states for exact in self.layouts[i].exact]
        if any(exact):
            of_tensors = torch.tensor(exact, device=CPU)
            norms[for_each_block(of_tensors, self._counts(states))] = 0
        return norms

    @functools.cached_property
    def eps(self) -> list[float]:
        """The coarsest eps of each layer, when all are known."""
        return [max(map(eps_of, (self.dtype, *dtypes))) for dtypes in self.computed]

    @property
    def _arities(self) -> list[int]:
        return [len(layout.parts) for layout in self.layouts]

    def _floors(self, sizes: Tensor) -> list[Tensor]:
        """Return for each state the sizes by which blocks of zeros are judged."""
        arities = self._arities
        ragged = len({*arities}) > 1
        floors = floors_of(sizes, ragged).unbind()
        if not ragged:
            return [*floors]
        return [row[:n] for row, n in zip(floors, arities, strict=True)]

    def _measure(
        self,
        compared: list[tuple[int, int]],
        rebuilt: Sequence[Tensor],
        marks: Sequence[Tensor],
        floors: Sequence[Tensor],
        growth: float,
    ) -> list[Measured]:
        layers, indices = zip(*compared, strict=True)
        errors: list[tuple[float, int, float]] = []
        eps = eps_of(self.dtype)
        shares = {
            computed: least_share(eps, computed, growth) for computed in {*self.eps}
        }
        for some in self._few(indices):
            chosen = [indices[i] for i in some]
            sizes = [self.layouts[i].rows for i in chosen]
            before = torch.cat([marks[i] for i in chosen])
            now = torch.cat([rebuilt[i] for i in some])
            distances = distance(now, before).double()
            norms = self._norms(marks, chosen)
            share = [shares[self.eps[layers[i]]] for i in some]
            scale = self._scale(chosen, norms, floors, torch.tensor(share, device=CPU))
            largest, places = _rows(relative_error(distances, scale), sizes).max(1)
            whole = relative_error(_whole(distances, sizes), _whole(norms, sizes))
            columns = largest.tolist(), places.tolist(), whole.tolist()
            errors += zip(*columns, strict=True)
        measured: list[Measured] = []
        last: Measured | None = None
        for layer, index, (error, block, of_all) in zip(
            layers, indices, errors, strict=True
        ):
            one = Measured(layer, index, error, self.eps[layer], block, of_all)
            if last is not None and one.follows(last):
                one = one._replace(eps=max(one.eps, last.eps))
            last = one if one.rebuilt else last
            measured.append(one)
        return measured

    def _scale(
        self,
        states: Sequence[int],
        norms: Tensor,
        floors: Sequence[Tensor],
        share: Tensor,
    ) -> Tensor:
        """Return the size relative to which the error of each block is measured.

        Args:
            states: The states that are compared.
            norms: The norms of their blocks.
            floors: For each state of the pass, the sizes that count for zeros.
            share: For each of `states`, the smallest part that is judged by its size.
        """
        floor = torch.cat([floors[i] for i in states])
        floor = for_each_block(floor, self._counts(states))
        parts = [blocks for i in states for blocks in self.layouts[i].parts]
        parts = parts[:1] if len({*parts}) == 1 else parts
        of_blocks = for_each_block(share, [self.layouts[i].rows for i in states])
        least = of_blocks * sizes_of_samples(norms, parts)
        return torch.maximum(torch.where(norms > 0, norms, floor), least)

    def _planned(self, one: Measured, growth: float) -> Measured:
        """Return an error in the unit of the budget that anchors are placed for.

        The budget is one of the whole state. The error of a part counts as the whole
        budget where it reaches the tolerance.
        """
        eps = eps_of(self.dtype)
        allowed = tolerance(eps, one.eps, growth)
        part = one.error * BUDGET * eps / allowed if allowed else one.error
        return one._replace(error=max(one.whole, part))

    def _breaches(
        self, measured: list[Measured], growth: float
    ) -> list[list[Measured]]:
        """Return for each error beyond the tolerance the run that ends with it."""
        eps = eps_of(self.dtype)
        allowed = {n: tolerance(eps, n, growth) for n in {m.eps for m in measured}}
        if all(one.error <= min(allowed.values()) for one in measured):
            return []

        def out_of_bounds(one: Measured) -> bool:
            bound = allowed[one.eps] if one.rebuilt else tolerance(eps, one.eps)
            return not one.error <= bound

        led = [until_first(run, out_of_bounds) for run in runs(measured)]
        led = [run for run in led if run]
        # what is evaluated from a wrong input is wrong too
        known = {one.layer for one in measured if one.rebuilt and led}
        evaluated = [m for m in measured if not m.rebuilt and m.layer not in known]
        return [[one] for one in evaluated if out_of_bounds(one)] + led

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
        limit = f"where {allowed:.1e} is allowed"
        if allowed < usual:
            limit += f", since the state grows or shrinks by {growth:.1e}"
        off = self._off(suspect or last, last, limit)
        return (
            f"{what} {off}: do not step with the gradients of this backward pass. "
            f"{why}{remedy}"
        ), remedied

    def _off(self, first: Measured, last: Measured, limit: str) -> str:
        """Return by how much a state was off, and by how much where the limit broke."""
        where = names_of(self.layouts[last.state].parts, last.block)
        if not math.isfinite(last.error):
            place = f" in {where}" if where else ""
            return (
                f"is not finite, or differs where there were zeros or integers{place}"
            )
        size = f"the size of {where}" if where else "its size"
        off = f"{last.error:.1e} of {size} ({self._in_eps(last)}), {limit}"
        if first is last:
            return f"is off by {off}"
        other = self.labels[last.layer]
        return f"is off by {first.error:.1e}, and that of {other} by {off}"

    def _in_eps(self, one: Measured) -> str:
        eps = eps_of(self.dtype)
        return f"{one.error / eps:.3g} eps of {self.dtype}" if eps else str(self.dtype)

    def _check_growth(self, growth: float) -> None:
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


def _whole(parts: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the norms of states from those of their blocks."""
    whole: Tensor = torch.linalg.vector_norm(_rows(parts, sizes), dim=1)
    return whole


def _rows(numbers: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return numbers of states as one row for each state, which may end with zeros."""
    if len({*lengths}) == 1:
        return numbers.view(-1, lengths[0])
    rows: Tensor = pad_sequence(list(numbers.split(list(lengths))), batch_first=True)
    return rows


def _plain(state: Tensors) -> Tensors:
    """Return the plain tensors of a state, of which subclasses are made."""
    if all(type(t) is Tensor for t in state):
        return state
    return tuple(plain for t in state for plain in plain_tensors(t))
