"""The calls of a pass under `torch.compile`, as functions of the tensors they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from invtorch.base import Composite, Step

Tensors = tuple[Tensor, ...]


class Call(NamedTuple):
    """One step, and where its tensors stand among those of the pass.

    Attributes:
        label: What errors call it.
        step: The step.
        names: Its parameters and buffers.
        places: Where its context and then these stand.
        learned: Which of them need a gradient.
        single: Whether the state is one tensor, not a tuple.
        anchor: Whether its input is kept.
        buffers: Which of its tensors a replay may write into, so that it takes copies.
    """

    label: str
    step: Step
    names: tuple[str, ...]
    places: tuple[int, ...]
    learned: tuple[bool, ...]
    single: bool
    anchor: bool
    buffers: frozenset[str] = frozenset()

    def companions(self, tensors: Sequence[Any]) -> list[Any]:
        """Pick context, parameters and buffers among the tensors of the pass."""
        return [tensors[i] for i in self.places]

    def choose(self, values: Sequence[Any]) -> list[Any]:
        """Pick what needs a gradient among the values of its companions."""
        return [v for v, wanted in zip(values, self.learned, strict=True) if wanted]

    def replaced(self, values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """Put others in the place of what needs a gradient."""
        rest = iter(others)
        pairs = zip(values, self.learned, strict=True)
        return [next(rest) if wanted else v for v, wanted in pairs]

    def evaluate(self, state: Tensors, companions: Sequence[Any]) -> Tensors:
        """Take the step with these tensors as context, parameters and buffers."""
        riding = len(self.places) - len(self.names)
        values = dict(zip(self.names, companions[riding:], strict=True))
        values |= {name: values[name].clone() for name in self.buffers}
        with _reparametrize_module(self.step.module, values):
            given = state[0] if self.single else state
            output = self.step(given, tuple(companions[:riding]))
        return as_tuple(output)

    @property
    def again(self) -> Call:
        """The step as a replay takes it, on copies of the buffers."""
        named = self.step.module.named_buffers(remove_duplicate=False)
        return self._replace(buffers=frozenset(name for name, _ in named))

    @property
    def back(self) -> Call:
        """The inverse of the step, on the same tensors."""
        return self.again._replace(step=self.step.inverse)


class Layout:
    """The tensors of a pass, each once: Dynamo takes no tensor twice."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []

    def place(self, tensor: Any) -> int:
        """Return where a tensor stands, giving it a place if it has none."""
        for i, known in enumerate(self.tensors):
            if known is tensor:
                return i
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module, by all of their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def elementary(steps: Sequence[Step]) -> list[Step]:
    """Replace composites by their own steps."""
    found: list[Step] = []
    for step in steps:
        if isinstance(step.module, Composite):
            inside = elementary(step.module._steps(step.direction))
            found += [s._replace(context=s.context and step.context) for s in inside]
        else:
            found.append(step)
    return found


def as_tuple(state: Any) -> Tensors:
    """Return a state as a tuple of tensors."""
    return (state,) if isinstance(state, Tensor) else state
