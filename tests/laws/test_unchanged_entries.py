"""A container warns once if entries pass through all of its layers unchanged."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invtorch import (
    AdditiveCoupling,
    Flatten,
    InvertibleModule,
    InvertibleSequential,
    Join,
    LeapfrogStep,
    OnPart,
    Permute,
    PixelUnshuffle,
    Split,
)
from invtorch.containers.unchanged import names_of
from tests.compilation import COMPILING, compiled
from tests.parts import Conditioner, Reverse, Scale
from tests.registry import MAKERS, PAIR_MAKERS
from tests.strategies import memories

CHANNELS = 4
WARNING = "layers unchanged"
# what they do before other layers they undo behind them, up to rounding
UNDOING = {
    *("Logit", "HaarDownsample", "OrthogonalDownsample"),
    "InvertibleUNet(resampling=haar)",
}
EXACT = sorted(set(MAKERS) - UNDOING)


def batch(channels: int = CHANNELS, dims: int = 1) -> Tensor:
    """Return samples, and the same with the other sign: no value is special."""
    x = torch.randn(4, channels, *(4,) * dims, dtype=torch.float64)
    return torch.cat([x, -x])


def flat(state) -> Tensor:
    tensors = state if isinstance(state, tuple) else (state,)
    return torch.cat([t.detach().flatten(1) for t in tensors], 1)


def copied(before, after) -> str:
    """Return the names of the entries that are entries of `before` in all samples."""
    equal = flat(after)[:, :, None] == flat(before)[:, None]
    same = equal.all(0).any(1)
    single = isinstance(after, Tensor)
    tensors = (after,) if single else after
    sizes = [t[0].numel() for t in tensors]
    masks = [
        mask.view(1, *t.shape[1:])
        for mask, t in zip(same.split(sizes), tensors, strict=True)
    ]
    some = same.any() and not same.all()
    return names_of(tuple(masks), single) if some else ""


def warned(net, state, direction: str = "forward"):
    """Return the result of a call, and which entries its warning names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = getattr(net, direction)(state)
    messages = [str(w.message) for w in caught if WARNING in str(w.message)]
    assert len(messages) <= 1
    names = messages[0].split(" pass through")[0] if messages else ""
    return (result[0] if direction.endswith("log_det") else result), names


def assert_names_what_is_copied(net: InvertibleSequential, x) -> None:
    before = copy.deepcopy(net)
    y, named = warned(net, x)
    assert named == copied(x, y)
    back, named = warned(before, y, "inverse")
    assert named == copied(y, back)


@pytest.mark.parametrize("name", EXACT)
def test_every_layer(name: str) -> None:
    stay = Permute(CHANNELS, range(CHANNELS))
    net = InvertibleSequential(MAKERS[name](CHANNELS, 1), stay).double()
    assert_names_what_is_copied(net, batch())


@pytest.mark.parametrize("name", sorted(UNDOING))
def test_arithmetic_is_a_change(name: str) -> None:
    net = InvertibleSequential(MAKERS[name](CHANNELS, 1)).double()
    assert warned(net, batch())[1] == ""


@pytest.mark.parametrize("name", PAIR_MAKERS)
def test_every_layer_of_pairs(name: str) -> None:
    layer = PAIR_MAKERS[name](CHANNELS, 1)
    net = InvertibleSequential(Split(), layer, Join()).double()
    assert_names_what_is_copied(net, batch(2 * CHANNELS))


def placed(draw, dims: int) -> list[InvertibleModule]:
    """Draw layers that move entries, or keep some of them, and back."""
    kind = draw(st.integers(0, 5).filter(lambda kind: dims or kind != 1))
    if kind == 0:
        return [Permute(CHANNELS)]
    if kind == 1:
        down = PixelUnshuffle(2, dims=dims)
        channels = CHANNELS * 2**dims
        half = channels // 2
        inner = Conditioner(half, half, dims), Permute(channels)
        return [down, AdditiveCoupling(inner[0]), inner[1], down.inv]
    if kind == 2:
        inner = LeapfrogStep(Conditioner(2, 2, dims))
        return [Split(), draw(st.sampled_from([inner, inner.inv])), Join()]
    if kind == 3:
        flatten = Flatten((CHANNELS, *(4,) * dims))
        n = CHANNELS * 4**dims
        mask = torch.rand(n) < 0.8
        mask[:2] = torch.tensor([True, False])
        kept = int(mask.sum())
        inner = AdditiveCoupling(Conditioner(kept, n - kept, 0), split=mask)
        return [flatten, inner, flatten.inv]
    if kind == 4:
        pair = draw(st.sampled_from(sorted(PAIR_MAKERS)))
        return [Split(), PAIR_MAKERS[pair](2, dims), Join()]
    conditioner = Conditioner(2, 2, dims)
    return [AdditiveCoupling(conditioner, swap=draw(st.booleans()))]


@st.composite
def chains(draw) -> tuple[InvertibleSequential, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dims = draw(st.integers(0, 2))
    members: list[InvertibleModule] = []
    for _ in range(draw(st.integers(1, 4))):
        if dims and draw(st.integers(0, 3)) == 3:
            name = draw(st.sampled_from(EXACT))
            part = [MAKERS[name](CHANNELS, dims)]
        else:
            part = placed(draw, dims)
        nested = draw(st.integers(0, 3)) == 3
        members += [InvertibleSequential(*part).inv.inv] if nested else part
    if len(members) < 2:
        members.append(Permute(CHANNELS))
    if draw(st.booleans()):
        members.append(Split([1, 3]))
    return InvertibleSequential(*members).double(), batch(dims=dims)


@given(chains(), memories, st.booleans())
def test_chains(example, memory, grad) -> None:
    net, x = example
    net.memory = memory
    with torch.set_grad_enabled(grad):
        assert_names_what_is_copied(net, x)


@given(chains(), st.booleans())
def test_once_and_not_for_nested_ones(example, grad) -> None:
    net, x = example
    with torch.set_grad_enabled(grad):
        warned(net, x)
    for direction in ("forward", "forward_and_log_det"):
        with torch.no_grad():
            assert warned(net, x, direction)[1] == ""


def couplings(depth: int, **options) -> list[InvertibleModule]:
    return [AdditiveCoupling(Conditioner(2, 2, 1), **options) for _ in range(depth)]


def test_message() -> None:
    net = InvertibleSequential(*couplings(3)).double()
    with pytest.warns(UserWarning, match="swap=True") as caught:
        net(batch())
    assert str(caught[0].message).startswith(
        "entries 0 to 1 along dim 1 of the state pass through all 3 layers unchanged: "
    )


def test_turns_are_silent() -> None:
    net = InvertibleSequential(*couplings(1), *couplings(1, swap=True)).double()
    assert warned(net, batch())[1] == ""


def test_positions_of_a_checkerboard_are_counted() -> None:
    layers = [AdditiveCoupling(Conditioner(4, 4, 1), split="checkerboard")] * 2
    _, named = warned(InvertibleSequential(*layers).double(), batch())
    assert named == "entries 0, 2 along dim 2 of the state"
    layers = [AdditiveCoupling(Conditioner(4, 4, 2), split="checkerboard")] * 2
    _, named = warned(InvertibleSequential(*layers).double(), batch(dims=2))
    assert named == "32 of 64 entries (the first at (0, 0, 0)) of the state"


def test_one_layer_and_moves_are_silent() -> None:
    for members in (couplings(1), [Permute(CHANNELS), Split(1), Join(1)]):
        assert warned(InvertibleSequential(*members).double(), batch())[1] == ""


class TestNoFalseAlarm:
    """What is not known is assumed to change everything."""

    class Doubled(AdditiveCoupling):
        """A coupling of a user, which changes the other part too."""

        def forward(self, x, *context):
            return 2 * super().forward(x, *context)

        def inverse(self, y, *context):
            return super().inverse(y / 2, *context)

    @pytest.mark.parametrize(
        "layer",
        [lambda: TestNoFalseAlarm.Doubled(Conditioner(2, 2, 1)), Reverse],
        ids=["redefined", "user's"],
    )
    def test_layers_of_users(self, layer) -> None:
        net = InvertibleSequential(*couplings(1), layer(), *couplings(1)).double()
        assert warned(net, batch())[1] == ""

    def test_a_method_of_the_instance(self) -> None:
        first, second = couplings(2)
        first.forward = lambda x: 2 * x
        net = InvertibleSequential(*couplings(1), first, second, memory="store")
        assert warned(net.double(), batch())[1] == ""

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_hooks_that_change_the_state(self, place) -> None:
        net = InvertibleSequential(*couplings(3), memory="store").double()
        net[place].register_forward_hook(lambda _m, _x, y: 2 * y)
        assert warned(net, batch())[1] == ""

    def test_a_pass_with_arithmetic_between_layers(self) -> None:
        class More(InvertibleSequential):
            def forward(self, x):
                return 2 * super().forward(x)

        net = InvertibleSequential(*couplings(1), More(*couplings(1)), memory="store")
        assert warned(net.double(), batch())[1] == ""


class Kept(InvertibleModule):
    """A layer of a user that says which entries it leaves unchanged."""

    def __init__(self, shape: tuple[int, ...] = (CHANNELS, 4)):
        super().__init__()
        self.shape = shape
        self.scale = Scale(1, 1)

    def forward(self, x):
        return torch.cat([self.scale(x[:, :1]), x[:, 1:]], 1)

    def inverse(self, y):
        return torch.cat([self.scale.inverse(y[:, :1]), y[:, 1:]], 1)

    def unchanged(self, mask, direction):
        assert mask.shape == (1, CHANNELS, 4)
        assert direction == "forward"
        kept = torch.arange(CHANNELS).view(-1, 1).expand(self.shape) > 0
        return mask & kept if self.shape == mask.shape[1:] else kept[None]


def test_a_layer_of_a_user_may_say_what_it_leaves() -> None:
    net = InvertibleSequential(Kept(), *couplings(1)).double()
    assert warned(net, batch())[1] == "entries 1 along dim 1 of the state"


def test_masks_are_checked() -> None:
    net = InvertibleSequential(Kept((CHANNELS, 3)), *couplings(1)).double()
    with pytest.raises(ValueError, match=r"mask of \(4, 3\) for an output with"):
        net(batch())


def test_numbers_of_masks_are_checked() -> None:
    layer = Kept()
    layer.unchanged = lambda mask, _: (mask, mask)
    with pytest.raises(ValueError, match="returned 2 masks for an output of 1"):
        InvertibleSequential(layer, *couplings(1)).double()(batch())


def test_part_of_a_tuple() -> None:
    net = InvertibleSequential(Split(), OnPart(Scale(2, 1), 1)).double()
    assert warned(net, batch())[1] == "all entries of tensor 0"


class TestCompiled:
    """Under `torch.compile` there is no warning."""

    pytestmark = COMPILING

    def test_silent(self) -> None:
        net = InvertibleSequential(*couplings(2)).double()
        step = compiled(net)
        for _ in range(2):
            assert warned(step, batch(), "__call__")[1] == ""
        assert warned(net, batch())[1] != ""
