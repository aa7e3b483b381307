"""At 400 layers the default is as right as autograd, or says that it is not."""

import contextlib
import math
import re
import statistics
import warnings
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import DriftError, InvertibleModule, InvertibleSequential
from tests.networks import error, gradient, images, orthogonal, stacked
from tests.strategies import costly
from tests.strategies import network_seeds as seeds

pytestmark = pytest.mark.slow
DEPTH = 400
EPS = torch.finfo(torch.float32).eps


def errors(seed: int, strength: float, **options) -> tuple[float, float]:
    """Return how far the default and plain autograd are from float64."""
    torch.manual_seed(seed)
    net, x = orthogonal(strength, DEPTH, **options), images()
    found = gradient(net, x)
    net.memory = "store"
    plain = gradient(net, x)
    truth = gradient(net.double(), x.double())
    return error(found, truth), error(plain, truth)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@costly(2)
@given(seed=seeds)
def test_gradients_are_autograd_s_while_the_state_grows_up_to_31_times(
    strength, seed
) -> None:
    found, plain = errors(seed, strength)
    assert found <= 1.5 * plain


@costly(1)
@given(st.lists(seeds, min_size=7, max_size=7, unique=True))
def test_at_a_million_times_it_warns_and_stays_close(drawn) -> None:
    """One in fourteen such networks grows 8 million times or more, and is refused."""
    pairs, told, beyond = [], [], []
    for seed in drawn:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                pairs.append(errors(seed, 2.0))
            except DriftError as refused:
                pairs.append((math.inf, 0.0))
                beyond.append(named(refused))
        told += [str(w.message) for w in caught]
    found, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert found <= 3 * plain
    assert all(growth > 1 / EPS for growth in beyond)
    assert all("the state grows or shrinks by" in message for message in told)
    assert len(told) + len(beyond) == len(drawn)


def named(refused: DriftError) -> float:
    """Return the growth that an error names."""
    found = re.search(r"the state grows or shrinks by ([^\s:]+):", str(refused))
    return float(found[1])


@pytest.mark.parametrize(
    ("form", "strength"),
    [
        ("algebraic", 2.5),
        ("algebraic", 3.0),
        ("paper", 2.5),
        ("paper", 3.0),
        ("additive", 2.0),
        ("additive", 2.5),
    ],
)
@costly(2)
@given(seeds)
def test_beyond_what_it_can_keep_it_raises(form, strength, seed) -> None:
    """Where the state grows more than 1 / eps, and more anchors are needed."""
    torch.manual_seed(seed)
    net, x = stacked(form, strength, DEPTH), images()
    with pytest.raises(DriftError, match="do not step with") as refused:
        gradient(net, x)
    assert named(refused.value) > 1 / EPS
    assert 'anchors="auto"' in str(refused.value)


class Units(InvertibleModule):
    """Measure the state in other units."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x, *_):
        return x * self.factor

    def inverse(self, y, *_):
        return y / self.factor


@pytest.mark.filterwarnings("ignore:the state grows")
@costly(2)
@given(seeds)
def test_a_change_of_units_is_no_growth(seed) -> None:
    torch.manual_seed(seed)
    layers, x = orthogonal(2.0, 90, anchors=0), images()
    net = InvertibleSequential(Units(2.0**27), *layers, anchors=0)
    plain = InvertibleSequential(Units(1.0), *layers, anchors=0)
    assert torch.equal(gradient(net, x / 2**27), gradient(plain, x))


@costly(2)
@given(seeds)
def test_near_the_end_of_the_range_it_raises(seed) -> None:
    torch.manual_seed(seed)
    with pytest.raises(DriftError, match="do not step with"):
        gradient(orthogonal(3.5, DEPTH), images())


@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.parametrize("form", ["algebraic", "paper", "additive"])
@costly(1)
@given(st.lists(seeds, min_size=3, max_size=3, unique=True))
def test_what_the_error_advises_cures(form, drawn) -> None:
    ratios = []
    for seed in drawn:
        torch.manual_seed(seed)
        net, x = stacked(form, 2.5, DEPTH, anchors="auto"), images()
        for _ in range(4):
            with contextlib.suppress(DriftError):  # it learns from these, too
                gradient(net, x)
        found = gradient(net, x)
        net.memory = "store"
        plain = gradient(net, x)
        truth = gradient(net.double(), x.double())
        ratios.append(error(found, truth) / error(plain, truth))
    assert statistics.median(ratios) <= 1.5


@costly(2)
@given(seeds)
def test_without_anchors_it_raises_rather_than_being_wrong(seed) -> None:
    torch.manual_seed(seed)
    with pytest.raises(RuntimeError, match="do not step"):
        gradient(orthogonal(2.0, DEPTH, anchors=0), images())


@pytest.mark.filterwarnings("ignore:the state grows")
@costly(1)
@given(seeds)
def test_auto_keeps_as_many_anchors_as_the_growth_asks_for(seed) -> None:
    torch.manual_seed(seed)
    kept = []
    for strength in (0.1, 1.0, 2.0):
        net, x = orthogonal(strength, DEPTH, anchors="auto"), images()
        for _ in range(3):
            found = gradient(net, x)
        kept.append(len(net._anchors.places(DEPTH)))
        net.memory = "store"
        truth = gradient(deepcopy(net).double(), x.double())
        assert error(found, truth) <= 3 * error(gradient(net, x), truth)
    assert 1 <= kept[0] <= kept[1] <= 8 < kept[2] <= 24
