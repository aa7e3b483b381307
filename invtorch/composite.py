"""Modules composed of other modules, called one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from invtorch import _torch
from invtorch._checks import check_log_det
from invtorch.keywords import all_keywords, check_keywords, taken
from invtorch.module import OPPOSITE, Inverse, InvertibleModule, no_log_det
from invtorch.recording import Context, initialize

NO_CONTEXT = Context()


class Step(NamedTuple):
    """A module, the direction in which it is called, and whether it gets the context.

    Attributes:
        module: The module.
        direction: `"forward"` or `"inverse"`.
        context: Whether the context of the chain is passed to the module.

    Examples:
        >>> there = Step(Householder1x1(4))
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(there.inverse(there(x)), x, atol=1e-5)
        True
    """

    module: InvertibleModule
    direction: str = "forward"
    context: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        """The module, called in its direction."""
        return self.module if self.direction == "forward" else self.module.inverse

    @property
    def inverse(self) -> Step:
        """The same module in the other direction."""
        return self._replace(direction=OPPOSITE[self.direction])

    def __call__(self, state: Any, context: Context = NO_CONTEXT) -> Any:
        """Call the module."""
        part = self.part_of(context)
        if self.module._waits_for_data:
            initialize(self.module, self.direction, state, part)
        return part.call(self.function, state)

    def and_log_det(
        self, state: Any, context: Context = NO_CONTEXT
    ) -> tuple[Any, Tensor]:
        """Call the module and return its log-determinant too."""
        part = self.part_of(context)
        if self.module._waits_for_data:
            initialize(self.module, self.direction, state, part)
        function = getattr(self.module, f"{self.direction}_and_log_det")
        pair: tuple[Any, Tensor] = part.call(function, state)
        return pair

    def part_of(self, context: Context) -> Context:
        """Return the part of a context that the module receives."""
        if not self.context:
            return NO_CONTEXT
        if not context.named:
            return context
        return context._replace(named=taken(self.module._keywords(), context.named))

    def keywords(self) -> frozenset[str] | None:
        """Return the names of the keyword context it receives; `None` for any."""
        return self.module._keywords() if self.context else frozenset()


class Composite(InvertibleModule, elementary=False):
    r"""A module that applies others one after another, $y = f_L(\cdots f_1(x))$.

    A subclass defines `chain`, which returns the steps, and nothing else. A container
    inverts the modules one by one.

    Examples:
        >>> class Twice(Composite):
        ...     def __init__(self, module):
        ...         super().__init__()
        ...         self.module = module
        ...     def chain(self):
        ...         return [Step(self.module), Step(self.module)]
        >>> mix = Householder1x1(4)
        >>> x = torch.randn(2, 4)
        >>> torch.equal(Twice(mix)(x), mix(mix(x)))
        True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(elementary=False, **kwargs)

    def chain(self) -> Sequence[Step]:
        """Return the steps of the forward direction. The inverse reverses them."""
        raise NotImplementedError(f"{type(self).__name__} does not define chain")

    def _steps(self, direction: str) -> list[Step]:
        """Return the steps of a direction, `"forward"` or `"inverse"`."""
        steps = list(self.chain())
        return steps if direction == "forward" else [s.inverse for s in steps[::-1]]

    def forward(self, x: Any, *context: Any, **named: Any) -> Any:
        """Apply the steps from first to last."""
        chain = Pass(self._steps("forward"))
        return self._run(chain, x, self._context(context, named))

    def inverse(self, y: Any, *context: Any, **named: Any) -> Any:
        """Apply the inverse steps from last to first."""
        chain = Pass(self._steps("inverse"))
        return self._run(chain, y, self._context(context, named))

    def forward_and_log_det(
        self, x: Any, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        """Same as `forward`, with the sum of the log-determinants."""
        chain = PassWithLogDet(self._steps("forward"))
        return self._run(chain, x, self._context(context, named))  # type: ignore[no-any-return]

    def inverse_and_log_det(
        self, y: Any, *context: Any, **named: Any
    ) -> tuple[Any, Tensor]:
        """Same as `inverse`, with the sum of the log-determinants."""
        chain = PassWithLogDet(self._steps("inverse"))
        return self._run(chain, y, self._context(context, named))  # type: ignore[no-any-return]

    def _context(self, args: tuple[Any, ...], named: dict[str, Any]) -> Context:
        if named:
            check_keywords(type(self).__name__, named, self._keywords())
        return Context(args, named)

    def _keywords(self) -> frozenset[str] | None:
        return all_keywords(step.keywords() for step in self.chain())

    def _run(self, chain: Pass, state: Any, context: Context) -> Any:
        """Apply all steps. A container overrides this to apply its memory strategy."""
        return chain(state, context)

    @property
    def _layers(self) -> int:
        return sum(step.module._layers for step in self.chain())


class Pass:
    """All steps of a chain in one direction."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def __call__(self, state: Any, context: Context) -> Any:
        """Apply the steps."""
        for step in self.steps:
            state = step(state, context)
        return state


class PassWithLogDet(Pass):
    """All steps of a chain in one direction, with the sum of their log-determinants."""

    def __call__(self, state: Any, context: Context) -> Any:
        """Apply the steps, and return the sum of the log-determinants too."""
        log_det_sum = None
        for step in self.steps:
            state, log_det = step.and_log_det(state, context)
            check_log_det(type(step.module).__name__, log_det, state)
            log_det_sum = log_det if log_det_sum is None else log_det_sum + log_det
        return state, no_log_det(state) if log_det_sum is None else log_det_sum


def elementary(steps: Sequence[Step]) -> list[Step]:
    """Replace composites and inverse views by their inner steps, recursively.

    The indices of layers in anchors and in error messages are those of this list.
    """
    flat: list[Step] = []
    for step in steps:
        inner = inner_steps(step)
        if inner is None:
            flat.append(step)
        else:
            flat += [
                s._replace(context=s.context and step.context)
                for s in elementary(inner)
            ]
    return flat


def more_than_its_steps(module: InvertibleModule) -> str:
    """Return what a composite or an inverse view does besides its steps, if anything.

    Its steps cannot stand for it then.
    """
    if _torch.has_hooks(module):
        return "has hooks"
    base = Composite if isinstance(module, Composite) else Inverse
    for name in OPPOSITE:
        redefined = getattr(type(module), name) is not getattr(base, name)
        if redefined or name in vars(module):
            return f"redefines {name}"
    return ""


def inner_steps(step: Step) -> list[Step] | None:
    """Return the inner steps of a composite or an inverse view, otherwise `None`."""
    module = step.module
    if isinstance(module, Composite):
        return module._steps(step.direction)
    if isinstance(module, Inverse):
        return [Step(module.module, OPPOSITE[step.direction])]
    return None
