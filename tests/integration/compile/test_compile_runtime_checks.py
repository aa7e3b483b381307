"""What `torch.compile` gets wrong without a sign is noticed in the backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invtorch import (
    AdditiveCoupling,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.engine.compiled import checks
from tests.compilation import COMPILING, compiled
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner, Leapfrog, Reverse, Scale
from tests.stacks import sample, stack

# on a GPU a failed assertion would end CUDA for all tests that follow
pytestmark = [*COMPILING, ON_THE_CPU, pytest.mark.slow]


@pytest.mark.parametrize(("anchors", "guard"), [(0, "raise"), (1, "raise"), (1, None)])
def test_random_functions_are_refused(anchors, guard) -> None:
    class Drops(Conditioner):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.1)

    layers = [AdditiveCoupling(Drops(2, 2)) for _ in range(3)]
    net = InvertibleSequential(*layers, anchors=anchors, guard=guard).double()
    with pytest.raises(Exception, match=r"layer 0 .* random"):
        compiled(net)(sample(requires_grad=True))


class Tempered(Conditioner):
    """A conditioner with a buffer, and a frozen weight."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("temperature", torch.ones(1))
        self.second.weight.requires_grad_(False)

    def forward(self, x):
        return super().forward(x) / self.temperature


@pytest.mark.parametrize(("guard", "factor"), [(None, 3), ("raise", 1 + 1e-9)])
@pytest.mark.parametrize("name", ["first.weight", "second.weight", "temperature"])
def test_tensors_changed_in_place_before_backward_raise(name, guard, factor) -> None:
    layers = [AdditiveCoupling(Tempered()) for _ in range(2)]
    net = InvertibleSequential(*layers, anchors=0, guard=guard).double()
    loss = compiled(net)(sample(requires_grad=True)).square().sum()
    with torch.no_grad():
        net[0].conditioner.state_dict(keep_vars=True)[name].mul_(factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("guard", ["raise", None])
def test_an_output_changed_in_place_in_the_graph_raises(guard) -> None:
    layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(2)]
    net = InvertibleSequential(*layers, anchors=0, guard=guard).double()

    def changed(x):
        y = net(x)
        y += 1
        return y

    loss = compiled(changed)(sample(requires_grad=True)).square().sum()
    with pytest.raises(RuntimeError, match=r"output .* was changed in place"):
        loss.backward()


def test_a_wrong_inverse_raises_in_backward() -> None:
    class Wrong(Scale):
        def inverse(self, y):
            return super().inverse(y) * 1.01

    net = InvertibleSequential(Scale(4), Wrong(4), Scale(4), anchors=0).double()
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 1 \(Wrong\) did not repeat itself"):
        loss.backward()


class Clamped(InvertibleModule):
    """A layer that loses what is beyond one half."""

    def forward(self, x, *_):
        return torch.tanh(x.clamp(-0.5, 0.5))

    def inverse(self, y, *_):
        return torch.atanh(y)


def coupling() -> AdditiveCoupling:
    return AdditiveCoupling(Conditioner(2, 2))


def lossy():
    return [coupling(), Clamped(), coupling()], sample().double()


def drifting():
    layers = []
    for _ in range(5):
        conditioner = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            conditioner.weight.mul_(60)
        layers.append(OrthogonalCoupling(conditioner, channels=4))
    return layers, sample().float()


OFF = {
    "lossy": (lossy, r"inverting layer 1 \(Clamped\) is off by more than"),
    "drifting": (drifting, r"inverting layer \d+ \(OrthogonalCoupling\) is off .*step"),
}


@pytest.mark.parametrize(
    ("case", "fullgraph"), [("lossy", True), ("lossy", False), ("drifting", True)]
)
def test_a_state_rebuilt_wrongly_raises_in_backward(case, fullgraph) -> None:
    make, message = OFF[case]
    layers, x = make()
    net = InvertibleSequential(*layers, anchors=0).to(x.dtype)
    loss = compiled(net, fullgraph=fullgraph)(x.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match=message):
        loss.backward()


def test_without_the_guard_a_state_rebuilt_wrongly_passes() -> None:
    layers, x = lossy()
    net = InvertibleSequential(*layers, anchors=0, guard=None).double()
    compiled(net, backend="eager")(x.requires_grad_()).sum().backward()


class Steep(InvertibleModule):
    """Make the state ten times as large, and bring it back nearly exactly.

    More than ten times in one layer would count as a change of units.
    """

    def forward(self, x, *_):
        return x * 10

    def inverse(self, y, *_):
        return y * (0.1 * (1 + 5e-5))


@pytest.mark.parametrize("mode", [compiled, lambda net: net])
def test_a_small_error_counts_where_the_state_grows_beyond_all_digits(mode) -> None:
    x = sample().float()
    for layers, steep in ((5, False), (8, True)):
        net = InvertibleSequential(*[Steep() for _ in range(layers)], anchors=0)
        loss = mode(net)(x.clone().requires_grad_()).sum()
        if steep:
            with pytest.raises(RuntimeError, match=r"layer 7 \(Steep\) is off by"):
                loss.backward()
        elif mode is compiled:
            loss.backward()
        else:
            with pytest.warns(UserWarning, match="the state grows or shrinks"):
                loss.backward()


class Coarse(InvertibleModule):
    """A layer in half precision, whose inverse is as exact as that allows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x, *_):
        return x * self.scale.to(x.dtype)

    def inverse(self, y, *_):
        return y / self.scale.to(y.dtype) * 1.005


def test_rounding_of_a_coarser_layer_above_is_allowed() -> None:
    net = InvertibleSequential(Reverse(), Coarse(), anchors=0)
    x = sample().float().requires_grad_()
    compiled(net)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    fine = InvertibleSequential(Reverse(), Coarse().float(), anchors=0)
    with pytest.raises(RuntimeError, match=r"layer 1 \(Coarse\) is off|did not repeat"):
        compiled(fine)(x).sum().backward()


def test_nan_is_attributed_to_the_layer_that_made_it() -> None:
    net = stack(0, depth=3)
    with torch.no_grad():
        net[0].conditioner.second.weight.fill_(torch.nan)
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 0 \(AdditiveCoupling\) made NaN"):
        loss.backward()


def test_a_part_of_another_size_hides_no_wrong_inverse() -> None:
    class Wrong(Leapfrog):
        def inverse(self, state):
            q, other = state
            return q / 2, other

        def forward(self, state):
            q, other = state
            return q * 2 + self.force(q), other

    net = InvertibleSequential(Wrong(4), Wrong(4), anchors=0)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y, _ = compiled(net)((x, torch.full_like(x, 1e9)))
    with pytest.raises(RuntimeError, match=r"did not repeat itself|is off by more"):
        y.square().sum().backward()


def failing(label: str) -> dict[str, Callable[[], None]]:
    """Return the checks of a graph, each about to fail for a layer."""
    one, two, nan = torch.ones(1, 5), torch.full((1, 5), 2.0), torch.tensor(torch.nan)
    return {
        "finite": lambda: checks.assert_finite(label, nan),
        "unchanged": lambda: checks.assert_unchanged(one, two),
        "rebuilt": lambda: checks.assert_rebuilt(
            label, one, two, one[:, -1], (1e-4, 1e-6), nan > 1
        ),
        "round trip": lambda: checks.assert_repeated(
            label, one, two, [one[0, 0]], 1e-4
        ),
    }


@pytest.mark.parametrize("name", ["OrthogonalCoupling", "L" * 300])
@pytest.mark.parametrize("check", ["finite", "unchanged", "rebuilt", "round trip"])
def test_cuda_can_print_the_message(name, check) -> None:
    """It takes 254 characters, and says what to do in them."""
    with pytest.raises(RuntimeError) as raised:
        failing(f"layer 1999 ({name})")[check]()
    message = str(raised.value)
    assert len(message) <= 254
    if name == "OrthogonalCoupling":
        assert any(end in message for end in ("memory='store'", "`y += 1`", "rate"))
