"""The container that trains a chain of layers in the memory of one layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, overload

import torch
from torch import nn

from invtorch._checks import check_initialized
from invtorch._repr import parameter_count
from invtorch.composite import Composite, Pass, Step
from invtorch.containers.unchanged import CALLED, FirstPass
from invtorch.engine import (
    GUARDS,
    Anchors,
    AnchorsArgument,
    GuardPolicy,
    Strategy,
    plan,
    run,
)
from invtorch.memory.plan import Automatic, Plan
from invtorch.module import MEMORY, OPPOSITE, InvertibleModule, MemoryStrategy
from invtorch.recording import Context, check_hooks, is_recording

MemoryArgument: TypeAlias = MemoryStrategy | Literal["auto"] | None


class InvertibleSequential(Composite, nn.Sequential):  # type: ignore[misc]
    r"""Apply invertible modules one after another, and train them in constant memory.

    $$ y = (f_L \circ \cdots \circ f_2 \circ f_1)(x; c) $$

    In the backward pass the input of each layer is rebuilt from its output by
    inversion, so that activations take the memory of one layer, whatever the depth $L$.
    The gradients are those of plain autograd. Each layer is evaluated once more.
    Otherwise the container behaves as `nn.Sequential`: index, slice, append, insert,
    iterate. The keys of its `state_dict` are "0.…" with every strategy.

    At its first call a container of several layers warns if entries of the state pass
    through all of them unchanged, as in a chain of couplings that never take turns.

    Args:
        modules: The invertible modules, or one ordered dictionary of them.
        memory: What is kept for the backward pass. `"invert"` rebuilds activations by
            inversion; `"checkpoint"` keeps the state between any two layers and
            rebuilds the activations inside of a layer; `"offload"` does the same,
            but keeps the states in CPU memory; `"store"` uses plain autograd. If a
            member has its own `memory`, the strategy that keeps more is used. `"auto"`
            measures the layers at the first input, and selects a strategy for each of
            them such that a training step is fastest within `budget`; `plan` then holds
            the selection, to be printed.
        anchors: States kept exactly, because inversion accumulates rounding errors:
            their number, spread evenly (0 for inversion only); or the indices of the
            layers whose inputs they are; or `"auto"`, which places them where rounding
            errors grew in earlier backward passes. The layers of nested containers are
            counted one by one.
        guard: What happens at the end of a backward pass in which a rebuilt state
            differs from that of the forward pass, or a layer returned NaN or Inf:
            `"raise"`; `"warn"`; `"adapt"`, which adds anchors for the next steps and
            warns; or `None`, which does not compare states.
        state_dtype: The precision of the state between the layers: for example
            `torch.float64` with conditioners in single precision, or `torch.float32`
            with conditioners in half precision. Couplings evaluate a conditioner in the
            precision of its parameters. The output has the precision of the input. So
            has the state by default. If containers are nested, the `anchors`, `guard`,
            `budget` and `state_dtype` of the outermost one are used.
        budget: Memory for the activations of a training step with `memory="auto"`:
            bytes, or a fraction of the device's memory, by default half of it.
            Parameters, their gradients and the optimizer's state are not included.

    Shape:
        The input of the first member. `context` is passed to every member.

    Raises:
        TypeError: If a module is not an `InvertibleModule`.
        ValueError: If a module does not define its inverse, an option is unknown, or
            nothing fits in the budget.

    Examples:
        >>> from torch import nn
        >>> def conditioner():
        ...     return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())
        >>> net = InvertibleSequential(
        ...     *[OrthogonalCoupling(conditioner(), channels=8) for _ in range(50)]
        ... )
        >>> x = torch.randn(1, 8, 16, 16)
        >>> net(x).square().mean().backward()
        >>> torch.allclose(net.inverse(net(x)), x, atol=1e-3)
        True

    References:
        Gomez et al., *The reversible residual network*, 2017. arXiv:1707.04585

        Putzky and Welling, *Invert to learn to invert*, 2019. arXiv:1911.10914
    """

    def __init__(
        self,
        *modules: Any,
        memory: MemoryArgument = "invert",
        anchors: AnchorsArgument = 8,
        guard: GuardPolicy | None = "raise",
        state_dtype: torch.dtype | None = None,
        budget: float = 0.5,
    ) -> None:
        super().__init__(*modules)
        self._automatic = Automatic(budget)
        self.memory = memory
        self.anchors = anchors
        self.guard = guard
        self.state_dtype = state_dtype

    @property  # type: ignore[override]  # "auto" is for containers alone
    def memory(self) -> MemoryArgument:
        """What is kept for the backward pass."""
        return "auto" if self._planning else self._memory

    @memory.setter
    def memory(self, memory: MemoryArgument) -> None:
        if memory is not None and memory not in (*MEMORY, "auto"):
            raise ValueError(
                f"memory is {memory!r}, but must be one of {(*MEMORY, 'auto')}"
            )
        self._planning = memory == "auto"
        self._memory = None if memory == "auto" else memory

    @property
    def budget(self) -> float:
        """The memory for activations with `memory="auto"`: bytes, or a fraction."""
        return self._automatic.budget

    @budget.setter
    def budget(self, budget: float) -> None:
        self._automatic.budget = budget

    @property
    def plan(self) -> Plan | None:
        """The strategies that `memory="auto"` selected for the latest input."""
        return self._automatic.latest

    @property
    def anchors(self) -> AnchorsArgument:
        """The states kept exactly: their number, their indices, or `"auto"`."""
        return self._anchors.requested

    @anchors.setter
    def anchors(self, anchors: AnchorsArgument) -> None:
        self._anchors = Anchors(anchors)

    @property
    def state_dtype(self) -> torch.dtype | None:
        """The precision of the state between the layers. `None`: that of the input."""
        return self._state_dtype

    @state_dtype.setter
    def state_dtype(self, dtype: torch.dtype | None) -> None:
        known = dtype is None or isinstance(dtype, torch.dtype)
        if not known or (dtype is not None and not dtype.is_floating_point):
            raise ValueError(
                f"state_dtype is {dtype!r}, but must be a floating dtype such as "
                f"torch.float64"
            )
        self._state_dtype = dtype

    @property
    def guard(self) -> GuardPolicy | None:
        """What happens if a rebuilt state differs from that of the forward pass."""
        return self._guard

    @guard.setter
    def guard(self, guard: GuardPolicy | None) -> None:
        if guard not in GUARDS:
            raise ValueError(f"guard is {guard!r}, but must be one of {GUARDS}")
        self._guard = guard

    def chain(self) -> list[Step]:
        """Apply the members from first to last."""
        return [Step(member) for member in self._members]

    def _run(self, chain: Pass, state: Any, context: Context) -> Any:
        """Apply the members with the memory strategy."""
        outermost = torch.is_grad_enabled() and not is_recording()
        if outermost and self.memory != "store":
            check_hooks(self)
        strategy = Strategy(
            self.memory or "invert",
            self._anchors,
            self.guard,
            self._layers,
            self.state_dtype,
            self._automatic if self._planning else None,
        )
        strategy = plan(strategy, chain, state, context)
        if torch.compiler.is_compiling():
            # Dynamo compares what is read here: what fits in a budget has its own graph
            bool(strategy.memory == "store")
            return run(strategy, chain, state, context)
        if self in CALLED:
            return run(strategy, chain, state, context)
        first = FirstPass()
        result = run(strategy._replace(observer=first), chain, state, context)
        if first.calls or is_recording():
            CALLED.add(self)
        first.warn()
        return result

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a member. `append` and `extend` call this too."""
        super().add_module(name, invertible(module))

    def insert(self, index: int, module: nn.Module) -> Self:
        """Insert a member before `index`."""
        return super().insert(index, invertible(module))

    def __setattr__(self, name: str, value: Any) -> None:
        member = isinstance(value, nn.Module)
        super().__setattr__(name, invertible(value) if member else value)

    def __setitem__(self, index: int, module: nn.Module) -> None:
        super().__setitem__(index, invertible(module))

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[InvertibleModule]: ...

    @overload
    def __getitem__(self, index: int) -> InvertibleModule: ...

    @overload
    def __getitem__(self, index: slice) -> InvertibleSequential: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._like(self._members[index])
        return super().__getitem__(index)

    def __add__(self, other: Iterable[nn.Module]) -> InvertibleSequential:
        return self._like([*self._members, *other])

    def __mul__(self, times: int) -> InvertibleSequential:
        return self._like(self._members * times)

    def __rmul__(self, times: int) -> InvertibleSequential:
        return self * times

    def extra_repr(self) -> str:
        """Show the options."""
        budget = f", budget={self.budget}" if self._planning else ""
        dtype = f", state_dtype={self.state_dtype}" if self.state_dtype else ""
        return (
            f"memory={self.memory!r}{budget}, anchors={self.anchors!r}, "
            f"guard={self.guard!r}{dtype}"
        )

    def _repr_facts(self, nested: bool) -> list[str]:
        """Show the numbers of layers and parameters, and the options in effect."""
        options = self.extra_repr()
        if nested and type(self).extra_repr is InvertibleSequential.extra_repr:
            # in a nested container only `memory` has an effect
            options = "" if self.memory == "invert" else f"memory={self.memory!r}"
        layers = f"{self._layers} layer{'s' * (self._layers != 1)}"
        return [layers, parameter_count(self), options]

    def _like(self, members: Iterable[nn.Module]) -> InvertibleSequential:
        return InvertibleSequential(
            *members,
            memory=self.memory,
            anchors=self.anchors,
            guard=self.guard,
            state_dtype=self.state_dtype,
            budget=self.budget,
        )

    @property
    def _members(self) -> list[InvertibleModule]:
        return list(self)


def invertible(module: nn.Module | None) -> InvertibleModule:
    """Return `module` if it can be a member of an invertible container.

    Raises:
        TypeError: If it is not an `InvertibleModule`.
        ValueError: If it does not define its inverse.
        RuntimeError: If its constructor did not call that of its base class.
    """
    name = type(module).__name__
    if isinstance(module, (list, tuple, Iterator)):
        raise TypeError(
            f"{name} is not an InvertibleModule: give its modules one by one, "
            f"`InvertibleSequential(*modules)`"
        )
    if not isinstance(module, InvertibleModule):
        raise TypeError(
            f"{name} is not an InvertibleModule: use it as the conditioner of a "
            f"coupling, or write its inverse in a subclass of InvertibleModule"
        )
    check_initialized(module)
    for direction in OPPOSITE:
        if getattr(type(module), direction) is getattr(InvertibleModule, direction):
            raise ValueError(
                f"{name} does not define `{direction}`: write it in the class"
            )
    return module
