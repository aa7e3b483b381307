"""Keyword context reaches the layers that name it, gradients included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    ReversibleBlock,
    WithoutContext,
)
from invtorch.nets import IRIM
from tests.strategies import Example, anchors, assert_as_plain, directions, memories
from tests.tolerances import assert_equal


class Masked(InvertibleModule):
    """Reads a keyword, and any positional context."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1))

    def _shift(self, mask, context):
        return self.weight * mask + sum(c.mean() for c in context)

    def forward(self, x, *context, mask):
        return x + self._shift(mask, context)

    def inverse(self, y, *context, mask):
        return y - self._shift(mask, context)


class Structured(InvertibleModule):
    """Reads a structure of tensors and plain values, with a default."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1))

    def forward(self, x, *_, options=None):
        return x if options is None else x + self._shift(**options)

    def inverse(self, y, *_, options=None):
        return y if options is None else y - self._shift(**options)

    def _shift(self, scale, by):
        return scale * by[0] * self.weight


class MaskedConditioner(nn.Module):
    """A network in a coupling that reads a keyword."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.mix = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x, *context, mask=None):
        shift = sum(c.mean() for c in context)
        return torch.tanh(self.mix(x)) * mask[:, :1] + shift


class Film(nn.Module):
    """Computes scale and shift from a keyword alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv1d(1, 2 * channels, 1)

    def forward(self, *_, mask):
        return torch.tanh(self.mix(mask[:, :1]))


def reversible(channels: int) -> InvertibleModule:
    """Of two networks only one reads the keyword."""
    g = nn.Conv1d(1, channels - 1, 1)
    return ReversibleBlock(MaskedConditioner(channels - 1, 1), WithoutKeywords(g))


class WithoutKeywords(nn.Module):
    """A network without keyword context."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x, *_):
        return self.module(x)


MEMBERS = {
    "additive": lambda c: AdditiveCoupling(MaskedConditioner(c // 2, c - c // 2)),
    "affine": lambda c: AffineCoupling(MaskedConditioner(c // 2, 2 * (c - c // 2))),
    "orthogonal": lambda c: OrthogonalCoupling(
        MaskedConditioner(c // 2, c - c // 2), channels=c
    ),
    "film": lambda c: ConditionalAffine(Film(c)),
    "reversible": reversible,
    "mask": Masked,
    "options": Structured,
    "none": Householder1x1,
    "nested": lambda c: InvertibleSequential(Masked(c), Structured(c)),
    "inverse view": lambda c: Masked(c).inv,
    "without context": lambda c: WithoutContext(Structured(c)),
}


@st.composite
def examples(draw) -> tuple[Example, dict[str, object]]:
    """Draw a stack, its input, and keyword context with and without gradients."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    drawn = draw(st.lists(st.sampled_from(sorted(MEMBERS)), min_size=1, max_size=5))
    repeated = drawn * draw(st.sampled_from([1, 3]))
    members = [MEMBERS[name](3) for name in repeated] + [Masked(3), Structured(3)]
    net = InvertibleSequential(*members, anchors=draw(anchors)).double()
    tensors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=draw(st.booleans()))
        for shape in [(2, 3, 4), (2, 1, 4), (2, 1, 1), (2, 3, 4)]
    ]
    x, mask, by, extra = tensors
    named = {"mask": mask, "options": {"scale": draw(st.floats(0.5, 2)), "by": [by]}}
    if draw(st.booleans()):
        del named["options"]
    contexts = (extra,) * draw(st.integers(0, 1))
    return Example(net, x, contexts), named


def tensors_of(named) -> list[Tensor]:
    options = named.get("options", {"by": []})
    return [named["mask"], *options["by"]]


@given(examples(), memories, directions)
def test_gradients_equal_plain_autograd(drawn, memory, direction) -> None:
    example, named = drawn

    def gradients(example, strategy):
        example.module.memory = strategy
        y = getattr(example.module, direction)(example.x, *example.context, **named)
        leaves = [*example.inputs, *(t for t in tensors_of(named) if t.requires_grad)]
        loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sin().sum()
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    assert_as_plain(example, memory, gradients)


@given(examples())
def test_container_calls_layers_one_by_one(drawn) -> None:
    example, named = drawn
    state = example.x
    for member in example.module:
        known = member._keywords()
        some = {k: v for k, v in named.items() if known is None or k in known}
        state = member(state, *example.context, **some)
    assert_equal(example.module(example.x, *example.context, **named), state)


@given(examples())
def test_round_trip(drawn) -> None:
    example, named = drawn
    y = example.module(example.x, *example.context, **named)
    assert_equal(example.module.inverse(y, *example.context, **named), example.x)


@pytest.mark.parametrize("direction", ["forward", "inverse", "forward_and_log_det"])
def test_keyword_that_no_layer_takes_is_refused(direction) -> None:
    net = InvertibleSequential(Masked(3), WithoutContext(Structured(3)))
    x, mask = torch.zeros(1, 3, 2), torch.ones(1, 1, 2)
    with pytest.raises(TypeError, match=r"no module .* takes the keyword 'options'"):
        getattr(net, direction)(x, mask=mask, options=None)


@pytest.mark.parametrize("name", ["additive", "affine", "orthogonal", "film"])
def test_keyword_that_the_network_of_a_coupling_does_not_take_is_refused(name) -> None:
    layer, x = MEMBERS[name](3), torch.zeros(1, 3, 2)
    with pytest.raises(TypeError, match="takes the keyword 'other'"):
        layer(x, mask=torch.ones(1, 1, 2), other=1)


def test_layer_that_misses_its_keyword_is_named() -> None:
    net = InvertibleSequential(Householder1x1(3), Masked(3))
    with pytest.raises(TypeError, match="mask") as caught:
        net(torch.zeros(1, 3, 2, requires_grad=True))
    assert any("layer 1 (Masked)" in note for note in caught.value.__notes__)


def test_irim_passes_keywords_to_its_gradient() -> None:
    def gradient(estimate, *, measured, mask):
        return mask * (estimate - measured)

    networks = [Householder1x1(6) for _ in range(3)]
    irim = IRIM(networks, gradient, estimate_channels=2, anchors=0).double()
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    measured = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 2, 4, dtype=torch.float64, requires_grad=True)

    def gradients(strategy):
        irim.steps.memory = strategy
        y = irim(x, measured=measured, mask=mask)
        return torch.autograd.grad(y.square().sum(), [measured, mask])

    for a, b in zip(gradients("invert"), gradients("store"), strict=True):
        assert_equal(a, b)


def test_changing_a_structure_after_forward_does_not_change_gradients() -> None:
    net = InvertibleSequential(*[Structured(3) for _ in range(3)], anchors=0).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    by = torch.randn(1, 1, 1, dtype=torch.float64, requires_grad=True)
    options = {"scale": 2.0, "by": [by]}
    y = net(x, options=options)
    options["scale"], options["by"] = 5.0, []
    (grad,) = torch.autograd.grad(y.sum(), by)
    net.memory = "store"
    y = net(x, options={"scale": 2.0, "by": [by]})
    assert_equal(grad, torch.autograd.grad(y.sum(), by)[0])
