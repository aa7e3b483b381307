"""The first call of converted blocks is as the others, whatever they are given."""

import copy
import itertools
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from invtorch.convert import ReversibleBlocks, reversible
from tests.tolerances import assert_equal

KINDS = ["momentum", "two_stream", "checkpoint"]
CHANGING = ["momentum", "two_stream"]
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


class Keys:
    """An object with tensors that blocks append to, as a cache of attention."""

    def __init__(self):
        self.keys: list[Tensor] = []

    def append(self, key):
        self.keys.append(key)

    def __iter__(self):
        return iter(self.keys)


class Attending(nn.Module):
    """A residual block that reads and extends what it is given."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, cache=None, generator=None, total=None):
        key = torch.tanh(self.mix(x))
        if cache is not None:
            with torch.no_grad():  # it is not differentiated
                cache.append(key.detach())
            key = key * sum(cache)
        if generator is not None:
            key = key + torch.randn(4, generator=generator, dtype=x.dtype)
        if total is not None:
            with torch.no_grad():
                total.add_(1)
            key = key * total
        return x + self.dropout(key)


ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "cache": st.sampled_from([list, Keys]),
        "generator": st.just(lambda: torch.Generator().manual_seed(3)),
        "total": st.just(lambda: torch.ones(())),
    },
)


@given(
    st.integers(0, 2**31),
    st.sampled_from(CHANGING),
    st.sampled_from([torch.no_grad, torch.inference_mode]),
    st.booleans(),
    ARGUMENTS,
)
def test_the_second_call_is_as_the_first(seed, kind, mode, training, makers) -> None:
    torch.manual_seed(seed)
    blocks = nn.ModuleList([Attending() for _ in range(3)]).double()
    net, x = reversible(blocks, kind=kind), torch.randn(2, 4, dtype=torch.float64)
    net.train(training)
    results = []
    for _ in range(2):
        named = {name: make() for name, make in makers.items()}
        torch.manual_seed(seed)
        with mode():
            y = net(x, **named)
        results.append((y, *named.get("cache", []), named.get("total", y)))
        if "generator" in named:
            results[-1] += (named["generator"].get_state(),)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@given(st.sampled_from(KINDS), ARGUMENTS)
def test_a_report_leaves_its_arguments(kind, makers) -> None:
    net = reversible([Attending() for _ in range(3)], kind=kind)
    named = {name: make() for name, make in makers.items()}
    net.report(torch.randn(2, 4), **named)
    assert [*named.get("cache", [])] == []
    assert named.get("total", torch.ones(())) == 1
    if "generator" in named:
        fresh = torch.Generator().manual_seed(3)
        assert torch.equal(named["generator"].get_state(), fresh.get_state())


def test_an_argument_that_cannot_be_copied_is_refused() -> None:
    net = reversible([Attending()])
    cache = (key for key in [1])
    with pytest.raises(TypeError, match="generator among the arguments"):
        net(torch.randn(2, 4), cache=cache)


class InPlace(nn.Module):
    """Adds to its input in place, or changes it before."""

    def __init__(self, before: bool):
        super().__init__()
        self.before = before
        self.mix = nn.Linear(4, 4)

    def forward(self, x):
        if self.before:
            return x + self.mix(torch.relu_(x))
        x += self.mix(x)
        return x


@given(
    st.sampled_from(CHANGING),
    st.sampled_from([torch.enable_grad, torch.no_grad]),
    st.booleans(),
    st.integers(0, 2),
)
def test_a_block_that_works_in_place_is_named(kind, mode, before, place) -> None:
    blocks = [Attending() for _ in range(3)]
    blocks[place] = InPlace(before)
    net, x = reversible(blocks, kind=kind), torch.randn(2, 4)
    given = x.clone()
    with mode(), pytest.raises(ValueError, match=f"block {place} modifies its input"):
        net(given)


ATTRIBUTES = sorted({*dir(ReversibleBlocks), *vars(reversible([Attending()]))})
OTHERS = ["velocity", "mix", "dropout", "a", "layer_1", "_block"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_name_of_a_block_is_kept_or_refused(kind) -> None:
    x = torch.randn(2, 4)
    for name in [*ATTRIBUTES, *OTHERS]:
        blocks = [Attending().eval() for _ in range(2)]
        named = OrderedDict(zip(["first", name], blocks, strict=True))
        try:
            sequence = nn.Sequential(named)
        except KeyError:  # PyTorch refuses it
            continue
        if name not in OTHERS[1:]:
            with pytest.raises(ValueError, match=f"block '{name}' has the name of an"):
                reversible(sequence, kind=kind)
            continue
        net = reversible(sequence, kind=kind)
        assert_equal(net(x), reversible(blocks, kind=kind)(x))
        assert [*net.state_dict()] == [*sequence.state_dict()]


@given(st.sampled_from(KINDS), st.lists(st.booleans(), min_size=4, max_size=4))
def test_restored_blocks_have_the_modes_of_the_converted(kind, modes) -> None:
    model = nn.ModuleDict({"layers": nn.Sequential(*[Attending() for _ in range(3)])})
    model.train(modes[0])
    net = reversible(model, "layers", kind=kind)
    assert {module.training for module in model.modules()} == {modes[0]}
    for module, mode in zip((net, *net.children()), modes[::-1], strict=True):
        module.training = mode
    expected = [module.training for module in model.modules()]
    net.restore()
    assert [module.training for module in model.modules()] == expected


class To(nn.Module):
    """Returns its input in another dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return (2 * x).to(self.dtype)


@given(
    st.sampled_from(CHANGING),
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float64]),
)
def test_blocks_that_change_the_dtype_are_left(kind, residual, dtype) -> None:
    x = torch.randn(2, 4)
    blocks = [To(x.dtype), To(dtype), To(dtype)]
    net = reversible(blocks, kind=kind, residual=residual)
    y = net(x)
    if residual or torch.promote_types(x.dtype, dtype) != x.dtype:
        assert net.left.keys() == {"1"}
        assert f"float32 to {dtype}" in net.left["1"]
        assert y.dtype == dtype
    else:  # the sum has the dtype of the state
        assert net.left == {}


class Strided(nn.Module):
    """Halves the sizes of its input, except those of 1."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return x[..., ::2] + self.conv(x)


@given(st.sampled_from(CHANGING), st.integers(2, 9))
def test_a_block_that_changes_the_shape_later_is_named(kind, size) -> None:
    net = reversible([nn.Tanh(), Strided()], kind=kind)
    net(torch.randn(2, 4, 1))
    with pytest.raises(ValueError, match="block 1 changes the shape"):
        net(torch.randn(2, 4, size))


STATES = {
    "none": (lambda: None, "a NoneType"),
    "tuple": (lambda: (torch.ones(2, 4), torch.ones(2, 4)), "a tuple"),
    "integers": (lambda: torch.ones(2, 4, dtype=torch.long), "of torch.int64"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)]),
        "that is nested",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@given(st.sampled_from(CHANGING), st.sampled_from(sorted(STATES)), st.booleans())
def test_states_that_no_layer_takes(kind, name, before) -> None:
    net = reversible([Attending(), Attending()], kind=kind)
    if before:
        net(torch.randn(2, 4))
    make, message = STATES[name]
    with pytest.raises(TypeError, match=message):
        net(make())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_encoders_of_torch_in_all_modes(kind, mode) -> None:
    for options in itertools.product([True, False], repeat=5):
        batch_first, norm_first, nested, training, masked = options
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, 0.0, batch_first=batch_first, norm_first=norm_first
        )
        model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=nested).double()
        model.train(training)
        alone = reversible([*copy.deepcopy(model).layers], kind=kind, gamma=0.7)
        flag = model.use_nested_tensor
        blocks = reversible(model, "layers", kind=kind, gamma=0.7)
        lengths = torch.tensor([5, 3, 1]) if masked else torch.full((3,), 5)
        padding = torch.arange(5) >= lengths[:, None]
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        with mode():
            y = model(
                x if batch_first else x.transpose(0, 1),
                src_key_padding_mask=padding if masked else None,
            )
        y = y if batch_first else y.transpose(0, 1)
        for i, length in enumerate(lengths):  # each without its padding
            one = x[i : i + 1, :length]
            expected = alone(one if batch_first else one.transpose(0, 1))
            expected = expected if batch_first else expected.transpose(0, 1)
            assert_equal(y[i, :length], expected[0])
        blocks.restore()
        assert model.use_nested_tensor == flag


OPTIONS = [
    ({"residual": None}, TypeError, "residual is None, but must be of type bool"),
    ({"output": "a"}, TypeError, "output is 'a', but must be of type int"),
    ({"gamma": "x"}, TypeError, "gamma is 'x', but must be a number"),
    ({"velocity": 3}, TypeError, "velocity is 3, but must be a function"),
    (
        {"velocity": torch.ones_like, "kind": "two_stream"},
        ValueError,
        "velocity is given, but has no effect",
    ),
    (
        {"split": 1, "kind": "two_stream"},
        TypeError,
        "split is 1, but must be a function",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_wrong_options(options, error, message) -> None:
    with pytest.raises(error, match=message):
        reversible([Attending()], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_converted_once(kind) -> None:
    model = nn.ModuleDict({"layers": nn.Sequential(Attending(), Attending())})
    net = reversible(model, "layers", kind=kind)
    for what in ((model, "layers"), (net,)):
        with pytest.raises(ValueError, match=r"converted already: call `restore\(\)`"):
            reversible(*what)
    net.restore()
    reversible(model, "layers", kind=kind)


@pytest.mark.parametrize("pair", [None, nn.Tanh(), (nn.Tanh(),), (nn.Tanh(), 1)])
def test_what_split_returns_is_checked(pair) -> None:
    net = reversible([Attending()], kind="two_stream", split=lambda _: pair)
    with pytest.raises(TypeError, match="for block 0, but must return two modules"):
        net(torch.randn(2, 4))
