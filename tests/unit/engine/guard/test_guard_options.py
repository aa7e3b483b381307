"""What a guard does about what it found: it warns, adapts, raises or is off."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from invtorch import AdditiveCoupling, InvertibleSequential
from invtorch.engine.guard.tolerance import growth_of
from tests.networks import conditioner, images, orthogonal
from tests.unit.engine.guard.test_guard import DEPTH, Noisy, Wrong, net_with, step


def test_it_warns() -> None:
    net = net_with(Wrong(conditioner(1.0)), guard="warn")
    with pytest.warns(UserWarning, match=r"layer 7 \(Wrong\) is off .*do not step"):
        step(net)


def test_it_is_switched_off() -> None:
    net = net_with(Wrong(conditioner(1.0)))
    net.guard = None
    step(net)


def test_it_adapts_by_keeping_what_cannot_be_rebuilt() -> None:
    net = net_with(Wrong(conditioner(1.0)), guard="adapt")
    with pytest.warns(UserWarning, match=r"From now on \[7\] are kept as anchors too"):
        step(net)
    assert net.anchors == (7,)
    step(net)
    assert net.anchors == (7,)


@pytest.mark.slow
def test_it_adapts_to_rounding_that_grows() -> None:
    net = orthogonal(2.0, 400, anchors=0, guard="adapt")
    x = images()
    with pytest.warns(UserWarning, match="Rounding was amplified layer by layer"):
        step(net, x)
    found = len(net.anchors)
    assert 2 <= found <= 40
    with pytest.warns(UserWarning, match="the state grows or shrinks by"):
        step(net, x)
    assert len(net.anchors) == found


def test_auto_keeps_learning_when_it_adapts() -> None:
    options = {"guard": "adapt", "anchors": "auto"}
    net = orthogonal(0.5, 30, **options)
    net[14] = Wrong(conditioner(1.0))
    with pytest.warns(UserWarning, match=r"From now on \[14\] are kept"):
        step(net)
    step(net)
    assert net.anchors == "auto"
    assert 14 in net._anchors.places(30)


def test_it_raises_where_no_anchor_helps() -> None:
    net = net_with(AdditiveCoupling(Noisy()), guard="adapt", anchors=DEPTH)
    with pytest.raises(RuntimeError, match="evaluated again, is off"):
        step(net)


@pytest.mark.slow
@pytest.mark.parametrize("state_dtype", [None, torch.float64])
def test_growth_is_warned_of_once(state_dtype) -> None:
    net, x = orthogonal(2.0, 400, state_dtype=state_dtype), images()
    sizes = [float(x.norm())]
    hooks = [
        layer.register_forward_hook(lambda *args: sizes.append(args[2].norm().item()))
        for layer in net
    ]
    with pytest.warns(UserWarning, match="bound the scale") as told:
        step(net, x)
    said = re.search(r"grows or shrinks by (\S+) over", str(told[0].message))
    assert float(said[1]) == pytest.approx(max(sizes) / min(sizes), rel=0.06)
    for hook in hooks:
        hook.remove()
    step(net, x)


def test_unknown_words() -> None:
    with pytest.raises(ValueError, match="guard is 'rise', but must be one of"):
        InvertibleSequential(guard="rise")
    with pytest.raises(ValueError, match="anchors is 'many', but must be a number"):
        InvertibleSequential(anchors="many")


SIZES = st.floats(1e-6, 1e6) | st.just(0.0)


@given(
    st.integers(1, 3).flatmap(
        lambda parts: st.lists(
            st.lists(SIZES, min_size=parts, max_size=parts), min_size=1, max_size=8
        )
    )
)
@example([[1.0], [0.0], [1.0]])
@example([[0.0], [1.0], [3.0]])
@example([[3.0, 4.0], [3.0, 0.1], [6.0, 8.0]])
def test_the_growth_of_a_pass_is_that_between_its_extremes(sizes) -> None:
    """Step by step, a factor of ten at most in each, zeros left out."""
    norms = [math.hypot(*parts) for parts in sizes]
    logarithms = [math.log(norm) for norm in norms if norm > 0]
    path = [0.0]
    for before, after in itertools.pairwise(logarithms):
        step = min(max(after - before, -math.log(10)), math.log(10))
        path.append(path[-1] + step)
    growth = growth_of(torch.tensor(sizes, dtype=torch.float64))
    expected = math.exp(max(path) - min(path))
    assert math.isclose(float(growth), expected, rel_tol=1e-9)
