"""Anchors: exactly their memory, and the same numbers to round-off."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch.composite import Step, elementary
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.networks import error, gradient, images, orthogonal, stacked
from tests.strategies import costly, network_seeds


@given(network_seeds, st.integers(2, 24), st.data())
def test_an_anchored_run_equals_an_unanchored_one(seed, depth, data) -> None:
    torch.manual_seed(seed)
    anchors = data.draw(
        st.integers(0, depth)
        | st.lists(st.integers(0, depth - 1), unique=True)
        | st.just("auto")
    )
    net, x = orthogonal(0.5, depth, anchors=0).double(), images().double()
    inverted = gradient(net, x)
    net.anchors = anchors
    for _ in range(2):
        assert error(gradient(net, x), inverted) <= 1e-12


@pytest.mark.slow
@ON_THE_CPU
@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_the_memory_of_auto_is_that_of_its_anchors(strength) -> None:
    net, x = orthogonal(strength, 200, anchors="auto"), images()
    kept = set()
    for _ in range(3):
        states = measure_memory(lambda: net(x)).live / x.nbytes
        assert states == 1 + len(net._anchors.places(200))
        kept.add(states)
        gradient(net, x)
    assert len(kept) > 1


def drift(net, x, anchors) -> float:
    """Return the largest error of a state rebuilt from the anchor above it, in eps."""
    steps = elementary([Step(net)])
    with torch.no_grad():
        states = [x]
        for step in steps:
            states.append(step(states[-1]))
        rebuilt, errors = states[-1], []
        for i, step in reversed(list(enumerate(steps))):
            rebuilt = states[i] if i in anchors else step.inverse(rebuilt)
            size = max(states[i].norm(), states[i + 1].norm())
            errors.append(float((rebuilt - states[i]).norm() / size))
    return max(errors) / torch.finfo(x.dtype).eps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.filterwarnings("ignore:the state rebuilt")
@pytest.mark.parametrize("form", ["algebraic", "paper", "additive"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0, 3.0])
@costly(1)
@given(network_seeds)
def test_auto_keeps_drift_between_two_anchors_within_its_budget(
    form, strength, seed
) -> None:
    torch.manual_seed(seed)
    net = stacked(form, strength, 200, anchors="auto", guard="warn")
    for _ in range(6):
        gradient(net, images())
    anchors = net._anchors.places(len(elementary([Step(net)])))
    assert drift(net, images(), anchors) <= 16
    assert drift(net, images(), ()) > 16 or strength < 1


@pytest.mark.slow
@ON_THE_CPU
@pytest.mark.filterwarnings("ignore:the state grows")
@pytest.mark.filterwarnings("ignore:the state rebuilt")
def test_what_adapt_adds_is_kept_and_nothing_else() -> None:
    net, x = orthogonal(2.0, 300, anchors=0, guard="adapt"), images()
    gradient(net, x)
    states = measure_memory(lambda: net(x)).live / x.nbytes
    assert states == 1 + len(net.anchors) > 1


def test_an_index_beyond_the_depth() -> None:
    net = orthogonal(0.5, 4, anchors=(3, 99))
    with pytest.raises(ValueError, match=r"indices \[99\], but a pass has 4 layers"):
        net(images())


@ON_THE_CPU
def test_indices_count_layers_of_nested_containers() -> None:
    inner, outer = orthogonal(0.5, 3), orthogonal(0.5, 2, anchors=(1, 4))
    outer.insert(1, inner)
    x = images()
    assert measure_memory(lambda: outer(x)).live == 3 * x.nbytes
    # an input that nothing else holds is kept too
    assert measure_memory(lambda: outer(images())).live == 4 * x.nbytes


def test_anchors_are_whole_numbers_of_any_kind() -> None:
    net = orthogonal(0.5, 10, anchors=np.int64(3))
    assert (net.anchors, len(net._anchors.places(10))) == (3, 3)
    for wanted in ((i for i in (2, 5)), np.array([2, 5]), [2, 5]):
        net.anchors = wanted
        for _ in range(2):
            assert net._anchors.places(10) == {2, 5}
    net(images()).sum().backward()
