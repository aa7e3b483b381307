"""Modules composed of other modules, called one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from invtorch.module import OPPOSITE, Inverse, InvertibleModule, no_log_det


class Step(NamedTuple):
    """A module, the direction in which it is called, and whether it gets the context.

    Attributes:
        module: The module.
        direction: `"forward"` or `"inverse"`.
        context: Whether the context of the chain is passed to the module.

    Examples:
        >>> there = Step(Householder1x1(4))
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(there.inverse(there(x, ()), ()), x, atol=1e-5)
        True
    """

    module: InvertibleModule
    direction: str = "forward"
    context: bool = True

    @property
    def inverse(self) -> Step:
        """The same module in the other direction."""
        return self._replace(direction=OPPOSITE[self.direction])

    def __call__(self, state: Any, context: tuple[Any, ...]) -> Any:
        """Call the module."""
        forward = self.direction == "forward"
        function = self.module if forward else self.module.inverse
        return function(state, *context) if self.context else function(state)

    def and_log_det(self, state: Any, context: tuple[Any, ...]) -> tuple[Any, Tensor]:
        """Call the module and return its log-determinant too."""
        function = getattr(self.module, f"{self.direction}_and_log_det")
        pair: tuple[Any, Tensor] = function(state, *(context if self.context else ()))
        return pair


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

    def forward(self, x: Any, *context: Any) -> Any:
        """Apply the steps from first to last."""
        return self._run(Pass(self._steps("forward")), x, context)

    def inverse(self, y: Any, *context: Any) -> Any:
        """Apply the inverse steps from last to first."""
        return self._run(Pass(self._steps("inverse")), y, context)

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        """Same as `forward`, with the sum of the log-determinants."""
        return self._run(PassWithLogDet(self._steps("forward")), x, context)  # type: ignore[no-any-return]

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        """Same as `inverse`, with the sum of the log-determinants."""
        return self._run(PassWithLogDet(self._steps("inverse")), y, context)  # type: ignore[no-any-return]

    def _run(self, chain: Pass, state: Any, context: tuple[Any, ...]) -> Any:
        """Apply all steps. A container overrides this to apply its memory strategy."""
        return chain(state, context)

    @property
    def _layers(self) -> int:
        return sum(step.module._layers for step in self.chain())


class Pass:
    """All steps of a chain in one direction."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def __call__(self, state: Any, context: tuple[Any, ...]) -> Any:
        """Apply the steps."""
        for step in self.steps:
            state = step(state, context)
        return state


class PassWithLogDet(Pass):
    """All steps of a chain in one direction, with the sum of their log-determinants."""

    def __call__(self, state: Any, context: tuple[Any, ...]) -> Any:
        """Apply the steps, and return the sum of the log-determinants too."""
        log_det_sum = None
        for step in self.steps:
            state, log_det = step.and_log_det(state, context)
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


def inner_steps(step: Step) -> list[Step] | None:
    """Return the inner steps of a composite or an inverse view, otherwise `None`."""
    module = step.module
    if isinstance(module, Composite):
        return module._steps(step.direction)
    if isinstance(module, Inverse):
        return [Step(module.module, OPPOSITE[step.direction])]
    return None
