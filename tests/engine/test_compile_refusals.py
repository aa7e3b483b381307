"""What `torch.compile` cannot do right is refused, or raises in the backward pass."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.nn import functional as F

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
)
from tests.compilation import COMPILING, compiled
from tests.parts import Conditioner, Leapfrog, Reverse, Scale
from tests.stacks import parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = COMPILING


class Normalized(Conditioner):
    """A conditioner that moves running statistics."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(super().forward(x))


def with_dropout():
    return Conditioner(2, 2, dropout=0.5)


def hooked():
    conditioner = Conditioner(2, 2)
    conditioner.first.register_forward_hook(lambda *_: None)
    return conditioner


REFUSED = {
    "Dropout": (with_dropout, r"layer 0 \(AdditiveCoupling\) draws random numbers"),
    "BatchNorm": (Normalized, r"moves running statistics \(BatchNorm2d\)"),
    "a hook": (hooked, r"has hooks \(on its Conv2d\)"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_be_repeated_is_refused_in_words(case) -> None:
    make, message = REFUSED[case]
    net = InvertibleSequential(*[AdditiveCoupling(make()) for _ in range(3)]).double()
    with pytest.raises(Unsupported, match=message):
        compiled(net)(sample(requires_grad=True))


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_without_fullgraph_the_container_runs_outside_of_the_graph(case) -> None:
    """A graph break, and all that the engine can do in eager mode."""
    make, _ = REFUSED[case]
    net = InvertibleSequential(*[AdditiveCoupling(make()) for _ in range(10)]).double()
    x = sample(requires_grad=True)

    def gradients(function):
        torch.manual_seed(0)
        return torch.autograd.grad(function(), [x, *parameters(net)])

    def loss():
        return weighed(net(torch.sin(x)) * 2)

    net.memory = "store"
    expected = gradients(loss)
    net.memory = "invert"
    assert_all_equal(gradients(compiled(loss, fullgraph=False)), expected)


@pytest.mark.parametrize("option", ["checkpoint", "offload"])
def test_other_strategies_are_refused_in_words(option) -> None:
    net = stack(0, depth=3)
    net.memory = option
    with pytest.raises(Unsupported, match=f"memory='{option}' is not supported under"):
        compiled(net)(sample(requires_grad=True))
    net.memory, net[1].memory = "invert", option
    with pytest.raises(Unsupported, match=f"layer 1 .* has memory='{option}'"):
        compiled(net)(sample(requires_grad=True))


def test_a_log_determinant_is_refused_in_words() -> None:
    net = InvertibleSequential(Scale(4), Scale(4)).double()
    with pytest.raises(Unsupported, match="a log-determinant is not supported under"):
        compiled(net.forward_and_log_det)(sample(requires_grad=True))


class Split(InvertibleModule):
    """A layer that turns one tensor into two."""

    def forward(self, x, *_):
        return x.chunk(2, 1)

    def inverse(self, y, *_):
        return torch.cat(y, 1)


class Single(InvertibleModule):
    """A layer that turns double precision into single precision."""

    def forward(self, x, *_):
        return x.float()

    def inverse(self, y, *_):
        return y.double()


BROKEN = {
    "two for one": (Split, r"layer 0 \(Split\) returned 2 tensors for a state of 1"),
    "dtype": (Single, r"layer 0 \(Single\) changed the dtype of the state from"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_layer_that_returns_another_kind_of_state_is_refused_in_words(case) -> None:
    layer, message = BROKEN[case]
    net = InvertibleSequential(layer(), anchors=0, guard=None)
    with pytest.raises(Unsupported, match=message):
        compiled(net)(sample(requires_grad=True))


def test_a_tensor_captured_by_closure_is_refused_in_words() -> None:
    captured = torch.ones(1, dtype=torch.float64, requires_grad=True)

    class Captures(Conditioner):
        def forward(self, x):
            return super().forward(x) * captured

    net = InvertibleSequential(AdditiveCoupling(Captures(2, 2))).double()
    with pytest.raises(Unsupported, match="reads a tensor that needs a gradient but"):
        compiled(net)(sample(requires_grad=True))


@pytest.mark.parametrize("anchors", [0, 3])
def test_randomness_that_no_module_shows_is_noticed_in_the_backward_pass(
    anchors,
) -> None:
    class Drops(Conditioner):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.1)

    layers = [AdditiveCoupling(Drops(2, 2)) for _ in range(6)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 5 .* did not repeat itself"):
        loss.backward()


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
def test_what_is_changed_in_place_before_backward_is_noticed(
    name, guard, factor
) -> None:
    layers = [AdditiveCoupling(Tempered()) for _ in range(2)]
    net = InvertibleSequential(*layers, anchors=0, guard=guard).double()
    loss = compiled(net)(sample(requires_grad=True)).square().sum()
    with torch.no_grad():
        net[0].conditioner.state_dict(keep_vars=True)[name].mul_(factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_wrong_inverse_is_noticed_in_the_backward_pass() -> None:
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


def lossy():
    mixed = [Householder1x1(4), AdditiveCoupling(Conditioner(2, 2))]
    return [*mixed, Clamped(), AdditiveCoupling(Conditioner(2, 2))], sample().double()


def drifting():
    layers = []
    for _ in range(8):
        conditioner = Conditioner(2, 2)
        with torch.no_grad():
            conditioner.second.weight.mul_(400)
        layers.append(OrthogonalCoupling(conditioner, channels=4))
    return layers, sample().float()


OFF = {
    "lossy": (lossy, r"inverting layer 2 \(Clamped\) is off by more than"),
    "drifting": (drifting, r"inverting layer \d+ \(OrthogonalCoupling\) is off .*step"),
}


@pytest.mark.parametrize(
    ("case", "fullgraph"), [("lossy", True), ("lossy", False), ("drifting", True)]
)
def test_a_state_rebuilt_wrongly_is_noticed_in_the_backward_pass(
    case, fullgraph
) -> None:
    make, message = OFF[case]
    layers, x = make()
    net = InvertibleSequential(*layers, anchors=0).to(x.dtype)
    loss = compiled(net, fullgraph=fullgraph)(x.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match=message):
        loss.backward()
    torch._dynamo.reset()
    net.guard = None
    compiled(net, backend="eager", fullgraph=fullgraph)(x).sum().backward()


class Coarse(InvertibleModule):
    """A layer in half precision, whose inverse is as exact as that allows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x, *_):
        return x * self.scale.to(x.dtype)

    def inverse(self, y, *_):
        return y / self.scale.to(y.dtype) * 1.005


def test_a_layer_is_not_blamed_for_a_coarser_one_above() -> None:
    net = InvertibleSequential(Reverse(), Coarse(), anchors=0)
    x = sample().float().requires_grad_()
    compiled(net)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    fine = InvertibleSequential(Reverse(), Coarse().float(), anchors=0)
    with pytest.raises(RuntimeError, match=r"layer 1 \(Coarse\) is off|did not repeat"):
        compiled(fine)(x).sum().backward()


def test_nan_is_laid_at_the_layer_that_made_it() -> None:
    net = stack(0, depth=3)
    with torch.no_grad():
        net[1].conditioner.second.weight.fill_(torch.nan)
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 1 \(OrthogonalCoupling\) made NaN"):
        loss.backward()


def test_arguments_that_are_no_floating_tensors_are_refused_in_words() -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(2)], anchors=0)
    q, p = torch.randn(2, 2, 5, 4, requires_grad=True), torch.ones(2, 2, 5, 4).long()
    with pytest.raises(Unsupported, match=r"a state in torch\.int64 is not supported"):
        compiled(net)((q, p))
    with pytest.raises(Unsupported, match="a context that is a dict is not supported"):
        compiled(stack(0, depth=2))(sample(requires_grad=True), {"scale": sample(1)})


@pytest.mark.parametrize("guard", ["warn", "adapt"])
def test_a_guard_that_goes_on_is_refused_in_words(guard) -> None:
    net = stack(0, depth=3)
    net.guard = guard
    with pytest.raises(Unsupported, match=f"guard='{guard}' is not supported under"):
        compiled(net)(sample(requires_grad=True))


def test_a_state_in_half_precision_without_a_guard_is_refused_in_words() -> None:
    net = stack(0, depth=3).bfloat16()
    net.guard = None
    with pytest.raises(
        Unsupported, match=r"a state in torch\.bfloat16 cannot be rebuilt"
    ):
        compiled(net)(sample().bfloat16().requires_grad_())


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
