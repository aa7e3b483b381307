"""What `repr` shows fits on a screen at every depth, and loses nothing."""

import re
from collections import OrderedDict

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    Composite,
    GatedResidualBlock,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    Step,
    VolumePreserving,
    WithoutContext,
)
from tests.parts import CONVOLUTIONS, Scale
from tests.registry import MAKERS

makers = st.sampled_from([MAKERS[name] for name in sorted(MAKERS)])


class Labeled(VolumePreserving):
    """A layer that shows a label and has some parameters."""

    def __init__(self, label: int, size: int = 0):
        super().__init__()
        self.label = label
        if size:
            self.values = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return x

    def inverse(self, y):
        return y

    def extra_repr(self) -> str:
        return f"label={self.label}"


class Doubled(nn.Module):
    """A parametrization that PyTorch does not have."""

    def forward(self, weight):
        return 2 * weight


def lines(module: nn.Module) -> list[str]:
    return repr(module).split("\n")


def expanded(printed: list[str]) -> list[str]:
    """Return the members that the lines of a container stand for, one by one."""
    open_patterns: list[tuple[int, list[str]]] = [(1, [])]
    for line in printed:
        times, text = re.match(r" *(?:\(.*?\): )?(?:(\d+) x )?(.*)", line).groups()
        if text == "[":
            open_patterns.append((int(times), []))
        elif text == "]":
            times, members = open_patterns.pop()
            open_patterns[-1][1].extend(members * times)
        else:
            open_patterns[-1][1].extend([text] * int(times or 1))
    ((_, members),) = open_patterns
    return members


@settings(max_examples=5)  # printing 1,000 layers takes about a second
@given(st.lists(makers, min_size=1, max_size=4))
def test_the_number_of_lines_does_not_know_depth(pattern) -> None:
    layers = [make(4, 2) for make in pattern]
    times = 10, 1000 // len(layers)
    shallow, deep = (InvertibleSequential(*layers * n) for n in times)
    assert len(lines(shallow)) == len(lines(deep))
    assert max(map(len, lines(deep))) < 130


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5))
def test_every_member_can_be_read_back(labels, times) -> None:
    net = InvertibleSequential(*[Labeled(label) for label in labels * times])
    _, *members, _ = lines(net) if labels else ("", "")
    assert expanded(members) == [f"Labeled(label={i})" for i in labels * times]
    places = re.findall(r"^  \((\d+)(?:-(\d+))?\): ", repr(net), re.MULTILINE)
    ends = [(int(first), int(last or first) + 1) for first, last in places]
    assert [0, *(end for _, end in ends)] == [*(start for start, _ in ends), len(net)]


@given(st.lists(makers, min_size=1, max_size=4), st.sampled_from([1, 2, 10]))
def test_parameters_are_counted(pattern, times) -> None:
    layers = [make(4, 2) for _ in range(times) for make in pattern]
    net = InvertibleSequential(*layers)
    opening, *others = lines(net)
    total = sum(p.numel() for p in net.parameters())
    assert (f", {total:,} parameters," in opening) == (total > 0)
    for layer in layers:
        count = sum(p.numel() for p in layer.parameters())
        assert not count or any(f"{count:,} parameter" in line for line in others)


@given(
    st.integers(1, 3),
    st.sampled_from(["weight_norm", "spectral_norm", "orthogonal", "Doubled"]),
    st.sampled_from(["weight", "bias"]),
)
def test_a_parametrization_is_a_word(dims, word, tensor) -> None:
    layer = CONVOLUTIONS[dims](2, 2, 3)
    known = {"weight_norm": weight_norm, "spectral_norm": spectral_norm}
    if word in known:
        known[word](layer)
        tensor = "weight"
    elif word == "orthogonal":
        orthogonal(layer)
        tensor = "weight"
    else:
        register_parametrization(layer, tensor, Doubled())
    expected = word if tensor == "weight" else f"{tensor}: {word}"
    shown = f"Conv{dims}d(2, 2, kernel_size=3, {expected})"
    assert shown in repr(AdditiveCoupling(layer))


def test_all_parametrizations_of_a_module_are_named() -> None:
    layer = weight_norm(nn.Linear(2, 2), dim=1)
    register_parametrization(layer, "weight", Doubled())
    register_parametrization(layer, "bias", Doubled())
    shown = "bias=True, weight_norm(dim=1) + Doubled, bias: Doubled)"
    assert shown in repr(AdditiveCoupling(layer))


DIFFERENT = [
    lambda: AdditiveCoupling(nn.Conv1d(2, 2, 3)),
    lambda: AdditiveCoupling(nn.Conv1d(2, 2, 3, stride=2)),
    lambda: AdditiveCoupling(nn.Conv1d(2, 2, 3, padding=1)),
    lambda: AdditiveCoupling(nn.Conv1d(2, 2, 3, dilation=2)),
    lambda: AdditiveCoupling(nn.Conv2d(2, 2, 3)),
    lambda: AdditiveCoupling(nn.Conv2d(2, 2, (3, 1))),
    lambda: AdditiveCoupling(nn.Conv2d(2, 2, 3, stride=(1, 2))),
    lambda: AdditiveCoupling(nn.Conv2d(2, 2, 3), split=2),
    lambda: AdditiveCoupling(nn.Conv2d(2, 2, 3), dim=2),
    lambda: AdditiveCoupling(nn.Conv2d(2, 2, 3), grid=2**-10),
    lambda: AdditiveCoupling(weight_norm(nn.Conv2d(2, 2, 3))),
    lambda: AffineCoupling(nn.Conv2d(2, 4, 3)),
    lambda: AffineCoupling(nn.Conv2d(2, 4, 3), scale="exp"),
    lambda: AffineCoupling(nn.Conv2d(2, 4, 3), bound=3.0),
    lambda: gated(),
    lambda: gated(stride=2),
    lambda: gated(stride=(1, 2)),
    lambda: gated(kernel_size=5),
    lambda: gated(hidden=5),
    lambda: gated(dims=1),
    lambda: gated(look=nn.Conv2d(4, 4, 3, padding=1)),
    lambda: gated(look=weight_norm(nn.Conv2d(4, 4, 3, padding=2, dilation=2))),
    lambda: gated(more=nn.ReLU()),
]


def gated(look=None, more=None, **options) -> InvertibleModule:
    block = GatedResidualBlock(2, 2, **{"hidden": 4} | options)
    block.look = look or block.look
    if more:
        block.more = more
    return OrthogonalCoupling(block, channels=4)


def test_layers_that_differ_print_differently() -> None:
    shown = [repr(make()) for make in DIFFERENT]
    assert len(set(shown)) == len(DIFFERENT)
    assert shown == [repr(make()) for make in DIFFERENT]


def test_a_gated_block_is_a_line() -> None:
    block = GatedResidualBlock(2, 3, hidden=4, stride=(1, 2))
    shown = "GatedResidualBlock(2, 3, hidden=4, stride=(1, 2), weight_norm)"
    assert repr(block) == shown


def test_options_of_a_container() -> None:
    net = InvertibleSequential(Labeled(0), Scale(2), memory="checkpoint", guard=None)
    net[0].memory = "store"
    assert lines(net) == [
        "InvertibleSequential(2 layers, 2 parameters, memory='checkpoint', anchors=8, "
        "guard=None",
        "  (0): Labeled(label=0, memory='store')",
        "  (1): Scale(2 parameters)",
        ")",
    ]


def test_a_nested_container_shows_the_options_that_it_has() -> None:
    inner = InvertibleSequential(Labeled(0), Labeled(1), memory="store")
    outer = InvertibleSequential(WithoutContext(inner), Labeled(2), memory="auto")
    assert lines(outer) == [
        "InvertibleSequential(3 layers, memory='auto', budget=0.5, anchors=8, "
        "guard='raise'",
        "  (0): WithoutContext(",
        "    (module): InvertibleSequential(2 layers, memory='store'",
        "      (0): Labeled(label=0)",
        "      (1): Labeled(label=1)",
        "    )",
        "  )",
        "  (1): Labeled(label=2)",
        ")",
    ]
    conditioner = InvertibleSequential(Householder1x1(2, 1))
    assert "anchors=8" in repr(AdditiveCoupling(conditioner))


def test_names_of_members_are_kept() -> None:
    members = OrderedDict((name, Labeled(0)) for name in ("first", "second", "2"))
    printed = repr(InvertibleSequential(members))
    assert all(f"({name}): Labeled(label=0)" in printed for name in members)


class Twice(Composite):
    """Applies a module two times."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def chain(self):
        return [Step(self.module), Step(self.module)]


def test_wrappers_say_what_they_wrap() -> None:
    inner = "Householder1x1(channels=4, reflections=3, 12 parameters)"
    for wrap, name in (
        (Twice, "Twice"),
        (WithoutContext, "WithoutContext"),
        (lambda m: m.inv, "Inverse"),
    ):
        assert repr(wrap(Householder1x1(4))) == f"{name}({inner})"


class Talkative(nn.Module):
    """Prints in its own way, on two lines."""

    def __repr__(self) -> str:
        return "Talkative:\n  yes"


class Long(nn.Module):
    """Has arguments on two lines, and a child that is None."""

    def __init__(self):
        super().__init__()
        self.missing = None
        self.register_module("nothing", None)
        self.inner = Talkative()

    def extra_repr(self) -> str:
        return "first\nsecond"


def test_modules_of_users_print_as_pytorch_prints_them() -> None:
    assert lines(AdditiveCoupling(Long())) == [
        "AdditiveCoupling(split=half, dim=1",
        "  (conditioner): Long(",
        "    first",
        "    second",
        "    (nothing): None",
        "    (inner): Talkative:",
        "      yes",
        "  )",
        ")",
    ]


def test_a_module_of_pytorch_shows_an_invertible_one() -> None:
    inner = InvertibleSequential(*[Labeled(0) for _ in range(5)])
    assert "  (1): InvertibleSequential(5 layers" in repr(
        nn.Sequential(Scale(2), inner)
    )


def test_parameters_without_a_shape_are_not_counted() -> None:
    assert "parameter" not in repr(AdditiveCoupling(nn.LazyLinear(3)))
