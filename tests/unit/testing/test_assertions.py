"""Each assertion finds the fault that it is for, and says by how much."""

import math
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    ElementwiseAffine,
    Householder1x1,
    InvertibleModule,
    LeakyReLU,
    LeakyTanh,
    LU1x1,
    OnPart,
    Orthogonal1x1,
    OrthogonalCoupling,
    Permute,
    ReversibleBlock,
    SplineCoupling,
)
from invtorch.testing import (
    assert_gradients_match,
    assert_invertible,
    assert_log_det,
    assert_memory_flat,
    assert_right_or_raises,
    strategies,
)
from invtorch.testing.compare import tolerance
from tests.parts import Conditioner, Scale


class Off(Scale):
    """An inverse that is off by one part in a million."""

    def inverse(self, y, *_):
        return super().inverse(y) * (1 + 1e-6)


class Infinite(Scale):
    """A layer that divides by zero."""

    def forward(self, x, *_):
        return x / 0


class WrongLogDet(Scale):
    """A log-determinant that is off by one part in ten thousand."""

    def forward_and_log_det(self, x, *_):
        y, log_det = super().forward_and_log_det(x)
        return y, log_det * 1.0001


class OneLogDet(Scale):
    """A log-determinant of all samples together."""

    def forward_and_log_det(self, x, *_):
        y, log_det = super().forward_and_log_det(x)
        return y, log_det.sum()


class WrongReplay(Scale):
    """A replay that differentiates another function."""

    def forward(self, x, *_):
        return super().forward(x)

    def inverse(self, y, *_):
        return super().inverse(y)

    def replay(self, y, *_):
        x = self.inverse(y).detach().requires_grad_()
        return x, self.forward(x) + 1e-5 * (x - x.detach())


class Hoarding(Scale):
    """A layer that keeps a copy of every state."""

    kept: list[torch.Tensor]

    def __init__(self, channels, dims=2):
        super().__init__(channels, dims)
        self.kept = []

    def forward(self, x, *_):
        self.kept.append(x.detach().clone())
        return super().forward(x)

    def inverse(self, y, *_):
        return super().inverse(y)


class Mixing(InvertibleModule):
    """A layer whose samples depend on each other."""

    def forward(self, x, *_):
        return x + len(x)

    def inverse(self, y, *_):
        return y - len(y)


class Detached(Scale):
    """A log-determinant without a gradient."""

    def forward_and_log_det(self, x, *_):
        y, log_det = super().forward_and_log_det(x)
        return y, log_det.detach()


class DetachedInverse(Scale):
    """The same in the other direction, where it depends on the state."""

    def inverse_and_log_det(self, y, *_):
        x, log_det = super().inverse_and_log_det(y)
        return x, log_det + (y - y.detach()).flatten(1).sum(1)


class ConstantInverse(Scale):
    """An inverse that is right, but without the gradient of its parameters."""

    def inverse(self, y, *_):
        return y * (-self.log_scale.detach()).view(self.shape).exp()


class WrongSlope(Scale):
    """An inverse that is right, but has another derivative."""

    def inverse(self, y, *_):
        x = super().inverse(y)
        return x + (x - x.detach()) / 100


class OtherInEvaluation(Scale):
    """An inverse that is the identity in evaluation mode."""

    def inverse(self, y, *_):
        return super().inverse(y) if self.training else y


class MixingInverse(Scale):
    """An inverse that depends on the size of the batch."""

    def inverse(self, y, *_):
        return super().inverse(y) + (len(y) == 1)


def state(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        (assert_invertible, Off, r"Off.inverse after forward: .* error of 1\.0e-06"),
        (assert_invertible, Infinite, "Infinite.forward returned NaN or Inf"),
        (
            assert_log_det,
            WrongLogDet,
            "WrongLogDet.forward_and_log_det: sample 0 has a",
        ),
        (assert_log_det, OneLogDet, r"of shape \(\), but should return one number"),
        (assert_gradients_match, WrongReplay, "gradients of WrongReplay.forward: tens"),
        (
            assert_right_or_raises,
            WrongReplay,
            "WrongReplay: half of the parameters are",
        ),
        (assert_right_or_raises, Mixing, "Mixing: a sample alone, compared with it in"),
        (
            assert_right_or_raises,
            MixingInverse,
            "MixingInverse.inverse: a sample alone, compared with it in",
        ),
        (assert_log_det, Detached, "gradients of Detached.forward_and_log_det"),
        (
            assert_log_det,
            DetachedInverse,
            "gradients of DetachedInverse.inverse_and_log_det",
        ),
        (
            assert_invertible,
            ConstantInverse,
            "gradients of ConstantInverse.inverse after forward",
        ),
        (assert_invertible, WrongSlope, "gradients of WrongSlope.inverse after forwar"),
        (
            assert_invertible,
            OtherInEvaluation,
            r"OtherInEvaluation.inverse after forward, in eval\(\)",
        ),
    ],
)
def test_faults_are_found(check, kind, message) -> None:
    module = kind().double() if kind is Mixing else kind(3, 1).double()
    with pytest.raises(AssertionError, match=message):
        check(module, state(2, 3, 4))


class Drawing(nn.Module):
    """A conditioner that draws random numbers in training, of one of these sources."""

    def __init__(self, source, outputs=2) -> None:
        super().__init__()
        self.source = source
        self.linear = nn.Linear(2, outputs)
        self.generator = torch.Generator()

    def forward(self, x):
        x = self.linear(x)
        if self.source == "functional":
            return nn.functional.dropout(x, 0.5, self.training)
        if not self.training:
            return x
        if self.source == "own":
            return x * torch.rand(x.shape, generator=self.generator)
        return x * {"python": random, "numpy": np.random}[self.source].random()


DRAWING = {
    "additive": lambda network: AdditiveCoupling(network()),
    "affine": lambda network: AffineCoupling(network(4)),
    "two-sided": lambda network: ReversibleBlock(network(), network()),
}


@pytest.mark.parametrize("source", ["functional", "python", "numpy", "own"])
@pytest.mark.parametrize("name", DRAWING)
def test_layers_that_draw_random_numbers_pass(name, source) -> None:
    module = DRAWING[name](partial(Drawing, source)).double()
    x = state(3, 4)
    assert_invertible(module, x)
    assert_log_det(module, x)
    assert_gradients_match(module, x)
    assert_right_or_raises(module, x)
    assert module.training


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        (assert_invertible, Off, "Drops.inverse after forward: .* error of 1"),
        (assert_log_det, WrongLogDet, "Drops.forward_and_log_det: sample 0 has a"),
        (assert_gradients_match, WrongReplay, "gradients of Drops.forward: tens"),
        (assert_right_or_raises, WrongReplay, "Drops: half of the parameters are"),
    ],
)
def test_faults_of_layers_that_draw_are_found(check, kind, message) -> None:
    class Drops(kind):
        """Multiplies by random numbers in training."""

        def forward(self, x, *_):
            return super().forward(x) * self._factor()

        def inverse(self, y, *_):
            return super().inverse(y) / self._factor()

        if kind is WrongReplay:

            def replay(self, y, *_):
                factor = self._factor()
                x = (super().inverse(y) / factor).detach().requires_grad_()
                return x, super().forward(x) * factor + 1e-5 * (x - x.detach())

        def _factor(self):
            return 1 + self.training * torch.rand(())

    with pytest.raises(AssertionError, match=message):
        check(Drops(3, 1).double(), state(2, 3, 4))


def test_a_change_in_place_is_found() -> None:
    class Doubling(Scale):
        def forward(self, x, *_):
            return x.mul_(2)

    with pytest.raises(AssertionError, match="changed its argument in place"):
        assert_invertible(Doubling(3, 1).double(), state(2, 3, 4))


@pytest.mark.usefixtures("on_the_cpu")
def test_kept_activations_are_found() -> None:
    with pytest.raises(AssertionError, match=r"8 layers of Hoarding keep .* but 32"):
        assert_memory_flat(Hoarding(3, 1), torch.randn(8, 3, 16))


def test_an_error_in_ordinary_use_is_no_refusal() -> None:
    with pytest.raises(ValueError, match="does not have the 4 channels"):
        assert_right_or_raises(Householder1x1(4), torch.randn(2, 3))


def test_a_sample_that_is_too_large_for_a_jacobian() -> None:
    with pytest.raises(ValueError, match="a sample has 2048 entries, but at most 1024"):
        assert_log_det(Scale(2, 1), torch.randn(1, 2, 1024))


@given(strategies.states(strategies.shapes(dims=1, channels=4, multiple_of=2)))
def test_states_that_are_drawn_fit(x) -> None:
    assert x.shape[1] == 4
    assert x.shape[2] % 2 == 0
    assert_invertible(AdditiveCoupling(Conditioner(2, 2, 1)).double(), x)


@given(strategies.states(tensors=2).flatmap(strategies.contexts))
def test_contexts_that_are_drawn_fit(context) -> None:
    assert all(c.dtype == torch.float64 for c in context)


def test_tolerances_follow_the_precision() -> None:
    assert 3e-11 < tolerance(torch.float64) < 4e-11
    assert 2e-5 < tolerance(torch.float32) < 3e-5
    assert 0.03 < tolerance(torch.float16) < 0.04
    assert 0.2 < tolerance(torch.bfloat16) < 0.3
    assert tolerance(torch.int64) == 0


def test_single_precision_passes() -> None:
    module, x = AdditiveCoupling(nn.Linear(2, 2)), torch.randn(5, 4)
    for check in (assert_invertible, assert_gradients_match, assert_log_det):
        check(module, x)


def test_assertions_do_not_need_hypothesis() -> None:
    code = "import invtorch.testing, sys; assert 'hypothesis' not in sys.modules"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


class Smaller(Scale):
    """An inverse that loses a part, whatever the size of the state is."""

    def inverse(self, y, *_):
        return super().inverse(y) + 0.01 * y.detach().abs().amax()


class Detached(Scale):
    """A forward direction that does not differentiate its parameter."""

    def forward(self, x, *_):
        return x * self.log_scale.detach().view(self.shape).exp()


class OtherState(Scale):
    """A method with the log-determinant that returns another state."""

    def forward_and_log_det(self, x, *_):
        y, log_det = super().forward_and_log_det(x)
        return 1.01 * y, log_det


class NumberLogDet(Scale):
    """A log-determinant that is no tensor."""

    def forward_and_log_det(self, x, *_):
        y, log_det = super().forward_and_log_det(x)
        return y, log_det[0].item()


def shrunk(channels: int) -> ElementwiseAffine:
    """Return a layer whose log-determinant is minus the number of entries."""
    layer = ElementwiseAffine(channels)
    nn.init.constant_(layer.log_scale, -1.0)
    return layer


RIGHT = {
    "AdditiveCoupling": lambda: AdditiveCoupling(nn.Linear(2, 2)),
    "AffineCoupling": lambda: AffineCoupling(nn.Linear(2, 4)),
    "OrthogonalCoupling": lambda: OrthogonalCoupling(nn.Linear(2, 2), channels=4),
    "SplineCoupling": lambda: SplineCoupling(nn.Linear(2, 2 * 11), bins=4),
    "Householder1x1": lambda: Householder1x1(4),
    "Orthogonal1x1": lambda: Orthogonal1x1(4),
    "LU1x1": lambda: LU1x1(4),
    "Permute": lambda: Permute(4),
    "LeakyReLU": lambda: LeakyReLU(math.exp(-1)),
    "LeakyTanh": LeakyTanh,
    "ElementwiseAffine": lambda: shrunk(4),
}
BROKEN = {
    Smaller: assert_invertible,
    Detached: assert_invertible,
    OtherState: assert_log_det,
    WrongLogDet: assert_log_det,
    NumberLogDet: assert_log_det,
    OneLogDet: assert_log_det,
}
# the exponents of sizes that float16 has, and that others have
SIZES = {torch.float16: (-3, 2), torch.bfloat16: (-30, 30)}
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def state_of_size(dtype, data, seed) -> torch.Tensor:
    torch.manual_seed(seed)
    exponent = data.draw(st.integers(*SIZES.get(dtype, (-30, 30))), "exponent")
    return (10.0**exponent * torch.randn(3, 4, dtype=torch.float64)).to(dtype)


@given(st.sampled_from(sorted(RIGHT)), dtypes, st.data(), st.integers(0, 2**31))
def test_right_layers_pass_at_any_size_and_precision(name, dtype, data, seed) -> None:
    x = state_of_size(dtype, data, seed)
    module = RIGHT[name]().to(dtype)
    assert_invertible(module, x)
    assert_log_det(module, x)
    assert_gradients_match(module, x)


@given(st.sampled_from([*BROKEN]), dtypes, st.data(), st.integers(0, 2**31))
def test_faults_are_found_at_any_size_and_precision(kind, dtype, data, seed) -> None:
    x = state_of_size(dtype, data, seed)
    # a part of a state is rounding, beside numbers of size one
    assume(kind not in (Smaller, OtherState) or x.double().abs().max() > 1e-11)
    with pytest.raises(AssertionError, match=kind.__name__):
        BROKEN[kind](kind(4, 0).to(dtype), x)


def test_a_state_of_zeros_and_an_empty_batch_pass() -> None:
    for name, make in RIGHT.items():
        for x in (torch.zeros(3, 4), torch.zeros(0, 4)):
            module = make()
            assert_invertible(module, x)
            assert_log_det(module, x)
            if name != "SplineCoupling":  # zeros are a knot, where slopes differ
                assert_gradients_match(module, x)


def test_a_context_without_axes_is_that_of_every_sample() -> None:
    layer = AdditiveCoupling(Conditioner(2, 2, 0))
    x, context = torch.randn(3, 4), torch.tensor(0.5, requires_grad=True)
    assert_invertible(layer, x, context)
    assert_log_det(layer, x, context)
    assert_gradients_match(layer, x, context)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_beside_the_state_and_alone(dtype) -> None:
    layer = OnPart(AffineCoupling(nn.Linear(2, 4)), 0)
    integers = torch.tensor([[1, 0], [0, 1], [1, 1]]).to(dtype)
    for module, x in ((layer, (torch.randn(3, 4), integers)), (Permute(2), integers)):
        assert_invertible(module, x)
        assert_log_det(module, x)
        assert_gradients_match(module, x)
        assert_right_or_raises(module, x)
