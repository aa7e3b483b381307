"""The base classes of invertible modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn

from invtorch._repr import describe, parameter_count
from invtorch.keywords import keywords_of
from invtorch.recording import (
    Direction,
    State,
    initializing,
    nested,
    recorded,
    waits_for_data,
)

# from the strategy that keeps least to the one that keeps most
MemoryStrategy: TypeAlias = Literal["invert", "offload", "checkpoint", "store"]
MEMORY: tuple[MemoryStrategy, ...] = get_args(MemoryStrategy)
StateT = TypeVar("StateT", bound=Tensor | tuple[Tensor, ...])

DIRECTIONS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")
OPPOSITE = {"forward": "inverse", "inverse": "forward"}
REPLAYS = {
    "forward": "replay",
    "inverse": "replay_inverse",
    "forward_and_log_det": "replay_and_log_det",
    "inverse_and_log_det": "replay_inverse_and_log_det",
}


def _inherit_no_replay(cls: type) -> None:
    """Set to `None` what a class with an own direction does not define for it.

    Replays and `unchanged` are valid only for the directions that they were written
    for. Otherwise a class that overrides a direction would be differentiated as its
    base class.
    """
    for name in (*REPLAYS.values(), "unchanged"):
        if name not in cls.__dict__:
            setattr(cls, name, None)


def _own_or_foreign(cls: type, name: str) -> Any:
    """Return a method that a class defines, or inherits from one that is no layer.

    Those of other layers are wrapped already.
    """
    owner = next((kind for kind in cls.__mro__ if name in kind.__dict__), None)
    if owner is None:
        return None
    wrapped = owner is not cls and issubclass(owner, InvertibleModule)
    return None if wrapped else owner.__dict__[name]


class InvertibleModule(nn.Module):
    r"""Base class of maps $y = f(x; c)$ with an inverse, the members of containers.

    A subclass defines `forward` and `inverse`. Nothing else is needed to train it in
    constant memory. The state $x$ is one tensor or a tuple of tensors (batch first,
    channels second). The context $c$ is any number of further arguments. They are
    passed to both directions, are never inverted, and may need gradients. In a
    container every layer receives the positional ones, and those keyword ones that the
    signature of its `forward` names.

    A layer that can invert and differentiate with one evaluation of its inner network
    can also define `replay(y, *context)` for `forward`, and
    `replay_inverse(x, *context)` for `inverse` (with the suffix `_and_log_det` for the
    methods with a log-determinant). A replay receives the output of that direction. It
    returns the rebuilt input, as a leaf that requires a gradient, and the output, as a
    differentiable function of that leaf. A class that overrides a direction does not
    inherit its replays.

    One module of a container can keep more than the others:
    `net[3].memory = "store"`.

    A layer that sets its parameters from the first batch defines
    `initialize(x, *context)`. It is called once, without gradients, before the first
    call in training mode. The buffer `initialized` of the layer is then true. It is
    saved in the `state_dict`, so that a resumed run does not initialize again;
    `layer.initialized.fill_(False)` lets the next call do so. In distributed training
    `initialize` must set the same values on all ranks.

    A layer that leaves entries of the state as they are, or only moves them, can define
    `unchanged(mask, direction)`. The mask has the form of a state of one sample, and is
    true where an entry is that of the input of the container. The method returns such a
    mask for the output of `direction`, `"forward"` or `"inverse"`; in place of a tensor
    without such entries it may return `None`. A container warns at its first call if
    entries are unchanged at its end. A layer without the method changes all entries.

    Examples:
        >>> class Shift(InvertibleModule):
        ...     def forward(self, x):
        ...         return x + 1
        ...     def inverse(self, y):
        ...         return y - 1
        >>> shift = Shift()
        >>> x = torch.zeros(1, 2)
        >>> torch.equal(shift.inverse(shift(x)), x)
        True
    """

    _memory: MemoryStrategy | None = None
    breaks_graph = False  # set where `torch.compile` runs it outside of its graph
    initialize: Callable[..., None]  # of layers that set parameters from data
    unchanged: Callable[[Any, str], Any] | None = None  # of layers that keep entries
    _waits_for_data = False  # whether `initialize` is still to be called
    _names: frozenset[str] | None = frozenset()  # the keyword context of `forward`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if hasattr(self, "initialize"):
            self.initialized: Tensor
            self.register_buffer("initialized", torch.tensor(False))
            self._waited = True
            self.register_load_state_dict_post_hook(_loaded)

    def __init_subclass__(cls, *, elementary: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrap = recorded if elementary else nested
        for name in DIRECTIONS:
            method = _own_or_foreign(cls, name)
            if method is not None:
                call = wrap(Direction(name, method))
                setattr(cls, name, functools.wraps(method)(call))
        initialize = _own_or_foreign(cls, "initialize")
        if initialize is not None:
            cls.initialize = initializing(initialize)
            cls._waits_for_data = property(waits_for_data)  # type: ignore[assignment]
        if "forward" in cls.__dict__:
            cls._names = keywords_of(functools.partial(cls.__dict__["forward"], None))
        if not cls.__dict__.keys().isdisjoint(DIRECTIONS):
            _inherit_no_replay(cls)

    @property
    def memory(self) -> MemoryStrategy | None:
        """The memory strategy of this module in a container.

        The container keeps at least what this strategy keeps. With `None`, the default,
        the container uses its own strategy. The strategies, from the one that keeps
        least, are `"invert"`, `"offload"`, `"checkpoint"` and `"store"`.
        """
        return self._memory

    @memory.setter
    def memory(self, memory: MemoryStrategy | None) -> None:
        if memory is not None and memory not in MEMORY:
            raise ValueError(f"memory is {memory!r}, but must be one of {MEMORY}")
        self._memory = memory

    if TYPE_CHECKING:

        def __call__(self, x: StateT, /, *context: Any, **named: Any) -> StateT:
            """Return the output of `forward`, a tensor for a tensor."""
            ...

    # with these arguments a subclass may choose its own, and give them types
    def forward(self, x: Any, /, *context: Any, **named: Any) -> Any:
        """Map the state `x` to the state `y`."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def inverse(self, y: Any, /, *context: Any, **named: Any) -> Any:
        """Map the state `y` back to `x`."""
        raise NotImplementedError(f"{type(self).__name__} does not define inverse")

    def forward_and_log_det(
        self, x: Any, /, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        r"""Return `y` and $\log\lvert\det \partial y/\partial x\rvert$, `(batch,)`."""
        raise NotImplementedError(_no_log_det(self, "forward_and_log_det"))

    def inverse_and_log_det(
        self, y: Any, /, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        r"""Return `x` and $\log\lvert\det \partial x/\partial y\rvert$, `(batch,)`."""
        raise NotImplementedError(_no_log_det(self, "inverse_and_log_det"))

    def _to_initialize(self, state: Any) -> tuple[InvertibleModule, Any]:
        """Return the module whose `initialize` is called, and its state."""
        return self, state

    def _keywords(self) -> frozenset[str] | None:
        """Return the names of the keyword context that it takes; `None` for any."""
        return self._names

    @property
    def inv(self) -> InvertibleModule:
        """This module with its two directions swapped. Parameters are shared."""
        return Inverse(self)

    __repr__ = describe

    def _repr_facts(self, nested: bool) -> list[str]:  # noqa: ARG002
        """Return what `repr` shows before the inner modules; see `invtorch._repr`.

        Args:
            nested: Whether the module is called by a container.
        """
        memory = f"memory={self._memory!r}" if self._memory else ""
        count = parameter_count(self)
        match [*self.children()]:
            case [InvertibleModule() as inner] if parameter_count(inner) == count:
                count = ""  # the inner module shows it
        return [self.extra_repr(), memory, count]

    @property
    def _layers(self) -> int:
        """The number of layers that one pass calls."""
        return 1


class VolumePreserving(InvertibleModule, elementary=False):
    r"""An invertible module with $\lvert\det \partial y/\partial x\rvert = 1$.

    The log-determinants of subclasses are zeros.

    Examples:
        >>> class Reverse(VolumePreserving):
        ...     def forward(self, x):
        ...         return x.flip(1)
        ...     def inverse(self, y):
        ...         return y.flip(1)
        >>> Reverse().forward_and_log_det(torch.zeros(2, 3))[1]
        tensor([0., 0.])
    """

    def forward_and_log_det(
        self, x: Any, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        """Return `forward(x)` and zeros."""
        return self.forward(x, *context, **named), no_log_det(x)

    def inverse_and_log_det(
        self, y: Any, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        """Return `inverse(y)` and zeros."""
        return self.inverse(y, *context, **named), no_log_det(y)


class Inverse(InvertibleModule, elementary=False):
    """A module with its two directions swapped, as `module.inv` returns it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(elementary=False, **kwargs)

    def __init__(self, module: InvertibleModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any, *context: Any, **named: Any) -> Any:
        """Apply the module's inverse."""
        return self.module.inverse(x, *context, **named)

    def inverse(self, y: Any, *context: Any, **named: Any) -> Any:
        """Apply the module."""
        return self.module(y, *context, **named)

    def forward_and_log_det(
        self, x: Any, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        """Apply the module's inverse, with its log-determinant."""
        return self.module.inverse_and_log_det(x, *context, **named)

    def inverse_and_log_det(
        self, y: Any, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        """Apply the module, with its log-determinant."""
        return self.module.forward_and_log_det(y, *context, **named)

    def _keywords(self) -> frozenset[str] | None:
        return self.module._keywords()

    @property
    def inv(self) -> InvertibleModule:
        """The module itself."""
        return self.module

    @property
    def _layers(self) -> int:
        return self.module._layers


def rearranged(layer: InvertibleModule, mask: State, direction: str) -> State:
    """Return which entries are unchanged, for a layer that only moves entries."""
    moved: State = getattr(layer, direction)(mask)
    return moved


def _loaded(module: InvertibleModule, _: object) -> None:
    """Read after `load_state_dict` whether a module was initialized."""
    waits_for_data(module)


def _no_log_det(module: InvertibleModule, method: str) -> str:
    return (
        f"{type(module).__name__} has no log-determinant: define `{method}`, which "
        f"returns it beside the state, or derive from VolumePreserving if it is 0"
    )


def no_log_det(state: State) -> Tensor:
    """Return the log-determinant of a volume-preserving map: a zero per sample."""
    tensor = state[0] if isinstance(state, tuple) and state else state
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"the state is a {type(state).__name__}, but must be a tensor or a tuple "
            f"of tensors: give it as one"
        )
    dtype = tensor.real.dtype if tensor.is_complex() else tensor.dtype
    return torch.zeros(len(tensor), dtype=dtype, device=tensor.device)
