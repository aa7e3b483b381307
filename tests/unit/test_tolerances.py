"""The tolerance of gradients allows rounding that is amplified, and nothing else."""

import pytest
import torch
from torch.autograd import grad

from invtorch import AffineCoupling, Householder1x1, InvertibleSequential
from tests.parts import Conditioner, Scale
from tests.strategies import Example, assert_as_plain, weighed
from tests.tolerances import EQUAL, largest_error


class Shrinks(Scale):
    """A layer whose state shrinks: to invert it amplifies what was rounded."""

    def __init__(self) -> None:
        super().__init__(4)
        with torch.no_grad():
            self.log_scale.copy_(torch.tensor([-4.0, -3.0, 0.0, 0.0]))


class OffByAMillionth(Scale):
    """A layer whose inverse is wrong by one millionth."""

    def inverse(self, y, *_):
        return super().inverse(y) * (1 + 1e-6)


def example(*layers) -> Example:
    """Return a network that amplifies rounding a million times."""
    members = [m for layer in layers for m in (layer, Shrinks(), Householder1x1(4))]
    net = InvertibleSequential(*members, anchors=0, guard=None).double()
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    return Example(net, x, ())


def gradients(example: Example, memory: str):
    example.module.memory = memory
    return grad(weighed(example.module(example.x)), example.inputs)


def couplings() -> list[AffineCoupling]:
    return [AffineCoupling(Conditioner(2, 4)) for _ in range(5)]


def test_rounding_that_is_amplified_is_allowed() -> None:
    drawn = example(*couplings())
    error = largest_error(gradients(drawn, "invert"), gradients(drawn, "store"))
    assert error > EQUAL[torch.float64]
    assert_as_plain(drawn, "invert", gradients)


def test_a_gradient_that_is_wrong_by_a_millionth_is_caught() -> None:
    def wrong(example: Example, memory: str):
        first, *others = gradients(example, memory)
        return [first * (1 + 1e-6 * (memory == "invert")), *others]

    with pytest.raises(AssertionError, match="rounding explains at most"):
        assert_as_plain(example(*couplings()), "invert", wrong)


def test_an_inverse_that_is_wrong_by_a_millionth_is_caught() -> None:
    first, *others = couplings()
    with pytest.raises(AssertionError, match="rounding explains at most"):
        assert_as_plain(
            example(first, *others, OffByAMillionth(4)), "invert", gradients
        )
