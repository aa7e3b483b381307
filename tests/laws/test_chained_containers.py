"""Containers one after another are as one container: in gradients and in memory."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    InvertibleModule,
    InvertibleSequential,
    Join,
    OrthogonalCoupling,
    Split,
)
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner, Leapfrog, Reverse, Scale
from tests.strategies import weighed
from tests.tolerances import assert_equal

CHANNELS = 4


def coupling() -> InvertibleModule:
    conditioner = Conditioner(CHANNELS // 2, CHANNELS // 2, 1)
    return OrthogonalCoupling(conditioner, channels=CHANNELS, reflections=2)


MEMBERS = {
    "coupling": lambda: [coupling()],
    "scale": lambda: [Scale(CHANNELS, 1)],
    "reverse": lambda: [Reverse()],
    "pair": lambda: [Split(), Leapfrog(CHANNELS // 2, 1), Join()],
}
OPTIONS = {
    "anchors": st.sampled_from([0, 1, 3, 8, "auto"]),
    "memory": st.sampled_from(["invert", "invert", "invert", "checkpoint", "store"]),
    "guard": st.sampled_from(["raise", None]),
}


@st.composite
def chains(draw) -> list[InvertibleSequential]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shared = coupling()
    containers = []
    for _ in range(draw(st.integers(2, 12))):
        names = draw(st.lists(st.sampled_from(sorted(MEMBERS)), min_size=1, max_size=3))
        members = [m for name in names for m in MEMBERS[name]()]
        if draw(st.integers(0, 5)) == 5:
            members.append(shared)
        options = {name: draw(kind) for name, kind in OPTIONS.items()}
        containers.append(InvertibleSequential(*members, **options).double())
    return containers


def batch(requires_grad: bool):
    x = torch.randn(2, CHANNELS, 5, dtype=torch.float64)
    return x.requires_grad_(requires_grad)


def stored(containers):
    for container in containers:
        container.memory = "store"


def assert_same(containers, x, loss, **options) -> None:
    """Assert that a loss has the gradients that it has if everything is stored."""
    leaves = [x, *{p: None for c in containers for p in c.parameters()}]
    leaves = [t for t in leaves if t.requires_grad]
    assume(leaves)
    options["allow_unused"] = True
    found = torch.autograd.grad(loss(), leaves, **options)
    stored(containers)
    expected = torch.autograd.grad(loss(), leaves, **options)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_equal(a, b)


@given(chains(), st.booleans())
def test_gradients_equal_plain_autograd(containers, needed) -> None:
    x = batch(needed)
    assert_same(containers, x, lambda: weighed(nn.Sequential(*containers)(x)))


USES = {  # what is done with the output of a container: the next input, and a loss
    "nothing": lambda y, _: (y, 0.0),
    "loss": lambda y, _: (y, weighed(y)),
    "skip": lambda y, _: (y + y.tanh() / 2, 0.0),
    "branch": lambda y, other: (y, weighed(other(y))),
    "view": lambda y, _: (y.flip(1), 0.0),
}


@given(chains(), st.data())
def test_losses_between_containers(containers, data) -> None:
    """Losses on outputs between, skip connections, and branches."""
    x = batch(True)
    uses = data.draw(
        st.lists(
            st.sampled_from(sorted(USES)),
            min_size=len(containers),
            max_size=len(containers),
        )
    )

    def loss():
        total, state = 0.0, x
        for container, use in zip(containers, uses, strict=True):
            state, added = USES[use](container(state), containers[0])
            total = total + added
        return total + weighed(state)

    assert_same(containers, x, loss)


@given(chains(), st.data())
def test_loss_on_an_inner_output_only(containers, data) -> None:
    x = batch(True)
    index = data.draw(st.integers(0, len(containers) - 1))

    def loss():
        state, chosen = x, None
        for i, container in enumerate(containers):
            state = container(state)
            chosen = state if i == index else chosen
        return weighed(chosen)

    assert_same(containers, x, loss)


@given(chains())
def test_second_order_gradients_equal_plain_autograd(containers) -> None:
    x = batch(True)

    def loss():
        y = weighed(nn.Sequential(*containers)(x))
        (grad,) = torch.autograd.grad(y, x, create_graph=True)
        return grad.square().sum()

    assert_same(containers, x, loss)


@given(chains())
def test_two_backward_passes(containers) -> None:
    x = batch(True)
    y = weighed(nn.Sequential(*containers)(x))
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert_equal(first, second)


@given(chains())
def test_inverse_of_a_chain(containers) -> None:
    y = batch(True)

    def loss():
        state = y
        for container in reversed(containers):
            state = container.inverse(state)
        return weighed(state)

    assert_same(containers, y, loss)


@given(chains(), st.data())
def test_output_changed_in_place_before_the_next_container(containers, data) -> None:
    """The gradients are right, or an error says so."""
    x = batch(True)
    index = data.draw(st.integers(0, len(containers) - 1))

    def loss():
        state = x
        for i, container in enumerate(containers):
            state = container(state)
            if i == index:
                state += 1
        return weighed(state)

    try:
        assert_same(containers, x, loss)
    except RuntimeError as error:
        assert "modified" in str(error)  # noqa: PT017


def test_state_changed_after_the_next_container_is_rebuilt_all_the_same() -> None:
    a, b = (InvertibleSequential(coupling(), anchors=0).double() for _ in range(2))
    x = batch(True)

    def loss():
        y = a(x)
        z = b(y)
        with torch.no_grad():
            y.zero_()
        return weighed(z)

    found = torch.autograd.grad(loss(), x)
    y = b(a(x))
    assert_equal(found[0], torch.autograd.grad(weighed(y), x)[0])


@ON_THE_CPU
@pytest.mark.parametrize("wrapped", [nn.Sequential, InvertibleSequential])
def test_live_bytes_are_equal_at_every_number_of_containers(wrapped) -> None:
    def live(count: int) -> float:
        containers = [InvertibleSequential(coupling(), anchors=0) for _ in range(count)]
        net, x = wrapped(*containers), torch.randn(2, CHANNELS, 256)
        if wrapped is InvertibleSequential:
            net.anchors = 0
        return measure_memory(lambda: net(x)).live / x.nbytes

    assert [live(count) for count in (4, 16, 64)] == [1.0, 1.0, 1.0]


@ON_THE_CPU
@given(st.integers(2, 70), st.integers(0, 9))
def test_at_most_the_anchors_are_kept_between_containers(count, anchors) -> None:
    containers = [
        InvertibleSequential(coupling(), anchors=anchors) for _ in range(count)
    ]
    net, x = nn.Sequential(*containers), torch.randn(2, CHANNELS, 256)
    live = measure_memory(lambda: net(x)).live / x.nbytes
    least = 1 + min(count - 1, (anchors + 1) // 2)
    assert least <= live <= 1 + min(count - 1, anchors)


@ON_THE_CPU
def test_backward_of_a_chain_needs_no_more_than_that_of_one_container() -> None:
    def peak(net) -> float:
        x = torch.randn(2, CHANNELS, 1024)

        def step() -> None:
            net.zero_grad()
            net(x).square().mean().backward()

        step()
        return measure_memory(step).peak / x.nbytes

    layers = [coupling() for _ in range(32)]
    one = peak(InvertibleSequential(*layers, anchors=0))
    many = peak(nn.Sequential(*[InvertibleSequential(m, anchors=0) for m in layers]))
    assert many <= one + 1.1  # the state that one tape hands over to the one before
