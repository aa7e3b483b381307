"""At 400 layers the default is as right as autograd, or says that it is not."""

import statistics
import warnings
from copy import deepcopy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.numerics.networks import error, gradient, images, orthogonal

DEPTH = 400
seeds = st.integers(0, 2**32 - 1)


def errors(seed: int, strength: float, **options) -> tuple[float, float]:
    """Return how far the default and plain autograd are from float64."""
    torch.manual_seed(seed)
    net, x = orthogonal(strength, DEPTH, **options), images()
    found = gradient(net, x)
    net.memory = "store"
    plain = gradient(net, x)
    truth = gradient(deepcopy(net).double(), x.double())
    return error(found, truth), error(plain, truth)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(seed=seeds)
def test_gradients_are_autograd_s_while_the_state_grows_up_to_31_times(
    strength, seed
) -> None:
    found, plain = errors(seed, strength)
    assert found <= 1.5 * plain


@settings(max_examples=1, deadline=None, phases=[Phase.generate])
@given(st.lists(seeds, min_size=10, max_size=10, unique=True))
def test_at_a_million_times_it_warns_and_stays_close(drawn) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = [errors(seed, 2.0) for seed in drawn]
    found, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert found <= 3 * plain
    told = [str(w.message) for w in caught]
    assert all("the state grows or shrinks by" in message for message in told)
    assert len(told) == len(drawn)


@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(seeds)
def test_beyond_what_it_can_keep_it_raises(seed) -> None:
    torch.manual_seed(seed)
    net, x = orthogonal(3.5, DEPTH), images()
    with pytest.raises(RuntimeError, match="do not step with"):
        gradient(net, x)


@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(seeds)
def test_without_anchors_it_raises_rather_than_being_wrong(seed) -> None:
    torch.manual_seed(seed)
    with pytest.raises(RuntimeError, match="do not step"):
        gradient(orthogonal(2.0, DEPTH, anchors=0), images())


@pytest.mark.filterwarnings("ignore:the state grows")
@settings(max_examples=1, deadline=None, phases=[Phase.generate])
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
    assert 1 <= kept[0] <= kept[1] <= 8 < kept[2] <= 20
