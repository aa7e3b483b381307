"""Modules that act on single tensors of a tuple state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from invtorch._checks import check_count
from invtorch.composite import (
    Composite,
    Step,
    elementary,
    inner_steps,
    more_than_its_steps,
)
from invtorch.containers.sequential import invertible
from invtorch.containers.split_and_join import Join, Split
from invtorch.module import (
    MEMORY,
    InvertibleModule,
    MemoryStrategy,
    VolumePreserving,
    no_log_det,
)
from invtorch.precision import is_differentiable
from invtorch.recording import Context
from invtorch.replay import ShiftGraph

Tensors = tuple[Tensor, ...]


class OnPart(Composite):
    r"""Apply a module to one tensor of a tuple state.

    $$ (x_1, \ldots, x_i, \ldots, x_n) \mapsto (x_1, \ldots, f(x_i; c), \ldots, x_n) $$

    The layers inside of `module` are layers of the container around: each is inverted
    and differentiated on its own, so memory does not depend on how many there are. A
    composite inside is one layer if it has hooks, or a direction of its own, or splits
    the tensor and joins it again.

    Args:
        module: The module $f$.
        index: Which tensor, counted from 0.

    Shape:
        A tuple with more than `index` tensors; so is the output.

    Raises:
        TypeError: If `module` is not an `InvertibleModule`, or the state no tuple.
        ValueError: If `module` does not define its inverse, `index` is negative, or the
            state has too few tensors.

    Examples:
        >>> layer = OnPart(Permute(3, "reverse"), 1)
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> layer((x, x))
        (tensor([[1., 2., 3.]]), tensor([[3., 2., 1.]]))
    """

    def __init__(self, module: InvertibleModule, index: int) -> None:
        super().__init__()
        check_count("index", index, least=0)
        self.module = invertible(module)
        self.index = index
        # wrappers of the layers inside, which are registered in `module` only
        self._wrapped: dict[Any, PartLayer] = {}
        self.chain()

    def chain(self) -> Sequence[Step]:
        """Apply each layer inside of the module to the tensor."""
        inner = _steps_inside(Step(self.module), "invert")
        before = self._wrapped
        self._wrapped = {
            key: before.get(key) or PartLayer(*key)
            for key in ((step.module, self.index, memory) for step, memory in inner)
        }
        return [
            step._replace(module=self._on_part(step.module, memory))
            for step, memory in inner
        ]

    def extra_repr(self) -> str:
        """Show which tensor."""
        return f"index={self.index}"

    def _on_part(self, module: InvertibleModule, memory: MemoryStrategy) -> PartLayer:
        wrapped = self._wrapped[module, self.index, memory]
        wrapped.training = module.training  # it is no submodule of anything
        return wrapped


def _steps_inside(
    step: Step, memory: MemoryStrategy
) -> list[tuple[Step, MemoryStrategy]]:
    """Return the layers inside of a module, each with the memory strategy around it.

    A composite whose steps cannot stand for it counts as a layer, and so does one that
    has several tensors between its steps.
    """
    inner = inner_steps(step)
    if inner is None or more_than_its_steps(step.module) or any(map(_opens, inner)):
        return [(step, memory)]
    memory = _most(memory, step.module.memory)
    return [
        (s._replace(context=s.context and step.context), strategy)
        for one in inner
        for s, strategy in _steps_inside(one, memory)
    ]


def _opens(step: Step) -> int:
    """Return how many times more a module splits a state than it joins one."""
    layers = elementary([step])
    opening = [
        (s, "forward" if isinstance(s.module, Split) else "inverse")
        for s in layers
        if isinstance(s.module, (Split, Join))
    ]
    return sum(1 if s.direction == way else -1 for s, way in opening)


def _most(memory: MemoryStrategy, own: str | None) -> MemoryStrategy:
    """Return the strategy that keeps more; `None` and `"auto"` keep nothing."""
    return max(memory, own, key=MEMORY.index) if own in MEMORY else memory


class Parallel(Composite):
    r"""Apply one module to each tensor of a tuple state.

    $$ (x_1, \ldots, x_n) \mapsto (f_1(x_1; c), \ldots, f_n(x_n; c)) $$

    The log-determinant is the sum over the branches. The layers inside of the modules
    are layers of the container around, as with `OnPart`.

    Args:
        modules: The modules $f_1, \ldots, f_n$; `None` leaves a tensor as it is.

    Shape:
        A tuple of as many tensors as there are modules; so is the output.

    Raises:
        TypeError: If a module is not an `InvertibleModule`, or the state no tuple.
        ValueError: If there is no module, one does not define its inverse, or the state
            has another number of tensors.

    Examples:
        >>> layer = Parallel(None, Permute(3, "reverse"))
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> layer((x, x))
        (tensor([[1., 2., 3.]]), tensor([[3., 2., 1.]]))
    """

    def __init__(self, *modules: InvertibleModule | None) -> None:
        super().__init__()
        if all(module is None for module in modules):
            raise ValueError(
                "Parallel got no module: give it one for each tensor of the state, "
                "`None` for a tensor that stays as it is"
            )
        for i, module in enumerate(modules):
            if module is not None:
                self.add_module(str(i), OnPart(module, i))
        self.branches = len(modules)

    def chain(self) -> Sequence[Step]:
        """Apply the modules from the first to the last."""
        return [Step(branch) for branch in self.children()]  # type: ignore[arg-type]

    def _run(self, chain: Any, state: Any, context: Context) -> Any:
        count = len(checked_tuple("Parallel", state))
        if count != self.branches:
            raise ValueError(
                f"Parallel has {self.branches} branches, but the state has {count} "
                f"tensors: give it one module or `None` for each"
            )
        return super()._run(chain, state, context)


class PartLayer(InvertibleModule):
    """One layer that acts on one tensor of the state; see `OnPart`.

    Args:
        module: The layer.
        index: Which tensor.
        around: The memory strategy of the containers around it, in the `OnPart`.
    """

    def __init__(
        self, module: InvertibleModule, index: int, around: MemoryStrategy
    ) -> None:
        super().__init__()
        self.module = module
        self.index = index
        self.around = around

    @property
    def memory(self) -> MemoryStrategy | None:
        """The memory strategy of the layer."""
        return _most(self.around, self.module.memory)

    @memory.setter
    def memory(self, memory: MemoryStrategy | None) -> None:
        self.module.memory = memory

    @property
    def _waits_for_data(self) -> bool:  # type: ignore[override]
        return self.module._waits_for_data

    def _to_initialize(self, state: Tensors) -> tuple[InvertibleModule, Any]:
        return self.module, self._part(state)

    def _keywords(self) -> frozenset[str] | None:
        return self.module._keywords()

    def forward(self, x: Tensors, *context: Any, **named: Any) -> Tensors:
        """Apply the layer to its tensor."""
        return self._with(x, self.module(self._part(x), *context, **named))

    def inverse(self, y: Tensors, *context: Any, **named: Any) -> Tensors:
        """Apply the inverse of the layer to its tensor."""
        return self._with(y, self.module.inverse(self._part(y), *context, **named))

    def forward_and_log_det(
        self, x: Tensors, *context: Any, **named: Any
    ) -> tuple[Tensors, Tensor]:
        """Apply the layer to its tensor, with its log-determinant."""
        part, log_det = self.module.forward_and_log_det(
            self._part(x), *context, **named
        )
        return self._with(x, part), log_det

    def inverse_and_log_det(
        self, y: Tensors, *context: Any, **named: Any
    ) -> tuple[Tensors, Tensor]:
        """Apply the inverse of the layer to its tensor, with its log-determinant."""
        part, log_det = self.module.inverse_and_log_det(
            self._part(y), *context, **named
        )
        return self._with(y, part), log_det

    def unchanged(self, mask: Tensors, direction: str) -> tuple[Tensor | None, ...]:
        """All other tensors are unchanged, and of its own what the layer leaves."""
        inner = self.module.unchanged
        part = None if inner is None else inner(self._part(mask), direction)
        return (*mask[: self.index], part, *mask[self.index + 1 :])

    @property
    def replay(self) -> Any:
        """The replay of the layer, with the other tensors beside it, if it has one."""
        return self._replay("replay")

    @property
    def replay_inverse(self) -> Any:
        """The same for the inverse."""
        return self._replay("replay_inverse")

    @property
    def replay_and_log_det(self) -> Any:
        """The same with the log-determinant."""
        return self._replay("replay_and_log_det")

    @property
    def replay_inverse_and_log_det(self) -> Any:
        """The same for the inverse, with the log-determinant."""
        return self._replay("replay_inverse_and_log_det")

    def _replay(self, name: str) -> Any:
        inner: Any = getattr(self.module, name, None)
        plain: Any = getattr(self.module, name.removesuffix("_and_log_det"), None)
        constant = inner is None and _preserves_volume(self.module)
        if inner is None and not (constant and plain):
            return None
        evaluate: Any = plain if constant else inner

        def replay(output: Tensors, *context: Any, **named: Any) -> Any:
            result = evaluate(self._part(output), *context, **named)
            others = tuple(_leaf(t) for t in output)
            if isinstance(result, ShiftGraph):
                return result.on_part(self.index, tuple(t.detach() for t in output))
            part, after = result
            before = self._with(others, part)
            passed = tuple(t.view_as(t) for t in others)
            if not name.endswith("_and_log_det"):
                return before, self._with(passed, after)
            end, log_det = (after, no_log_det(after)) if constant else after
            return before, (self._with(passed, end), log_det)

        return replay

    def _part(self, state: Tensors) -> Tensor:
        if self.index >= len(checked_tuple("OnPart", state)):
            raise ValueError(
                f"index is {self.index}, but the state has {len(state)} tensors: "
                f"indices count from 0"
            )
        return state[self.index]

    def _with(self, state: Tensors, part: Tensor) -> Tensors:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"{type(self.module).__name__} returned a {type(part).__name__} for "
                f"one tensor of the state: join its parts again, in one container with "
                f"it"
            )
        return (*state[: self.index], part, *state[self.index + 1 :])


def _preserves_volume(module: InvertibleModule) -> bool:
    """Return whether the log-determinants of a module are those of its base class."""
    base, kind = VolumePreserving, type(module)
    return (
        kind.forward_and_log_det is base.forward_and_log_det
        and kind.inverse_and_log_det is base.inverse_and_log_det
    )


def checked_tuple(name: str, state: object) -> Tensors:
    """Return the state of a layer of that name, which must be a tuple.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(state, tuple):
        raise TypeError(
            f"the state of {name} is a tuple of tensors, but got "
            f"{type(state).__name__}: write `layer((x1, x2))`"
        )
    return state


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(is_differentiable(tensor))
