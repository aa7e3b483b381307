"""A coupling divides its state in any way, and refuses what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    InvertibleSequential,
    LeapfrogStep,
    MomentumStep,
    OrthogonalCoupling,
    ReversibleBlock,
)
from tests.parts import Conditioner, known
from tests.stacks import both, gradients_of
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal


class Fitting(nn.Module):
    """A conditioner that returns any number of entries along an axis, for any input."""

    def __init__(self, size: int | None, dim: int, times: int = 1):
        super().__init__()
        self.size, self.dim, self.times = size, dim, times
        self.slope = nn.Parameter(torch.rand(()) + 0.5)

    def forward(self, x):
        size = self.times * (self.size or x.shape[self.dim])
        total = (self.slope * x).sin().sum(self.dim, keepdim=True)
        return torch.cat([total * (1 + i) / size for i in range(size)], self.dim)


@st.composite
def splits(draw: st.DrawFn):
    """Draw a shape, an axis, a split of it, and the mask of the first part."""
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    dim = draw(st.integers(1, len(shape)))
    size = shape[dim - 1]
    first = draw(st.integers(1, size - 1))
    along = [1] * len(shape)
    along[dim - 1] = size
    mask = (torch.arange(size) < first).view(along).expand(shape)
    kind = draw(st.sampled_from(["count", "sizes", "axis", "entries", "half"]))
    if kind == "half":
        mask = (torch.arange(size) < size // 2).view(along).expand(shape)
        return shape, dim, None, mask
    if kind == "axis":
        chosen = torch.randperm(size) < first
        return shape, dim, chosen, chosen.view(along).expand(shape)
    if kind == "entries" and len(shape) > 1:
        chosen = torch.rand(shape) < 0.5
        chosen.view(-1)[0], chosen.view(-1)[1] = True, False
        return shape, dim, chosen, chosen
    split = (first, size - first) if kind == "sizes" else first
    return shape, dim, split, mask


@given(splits(), st.booleans(), st.sampled_from(["add", "affine", "both"]))
def test_only_one_part_moves_and_only_the_other_conditions_it(drawn, swap, kind):
    shape, dim, split, first = drawn
    kept = first != swap
    entries = isinstance(split, torch.Tensor) and split.ndim > 1
    counts = kept.sum(dim - 1).flatten()[0], (~kept).sum(dim - 1).flatten()[0]
    moved_size = None if entries else int(counts[1])
    if kind == "add":
        layer = AdditiveCoupling(
            Fitting(moved_size, dim), split=split, dim=dim, swap=swap
        )
    elif kind == "affine":
        conditioner = Fitting(moved_size, dim, 2)
        layer = AffineCoupling(conditioner, split=split, dim=dim, swap=swap)
    else:
        sizes = (None, None) if entries else (int(first.sum(dim - 1).flatten()[0]), 0)
        f = Fitting(sizes[0], dim)
        g = Fitting(None if entries else shape[dim - 1] - sizes[0], dim)
        layer = ReversibleBlock(f, g, split=split, dim=dim)
    net = InvertibleSequential(*[layer] * 3, anchors=0).double()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    assert_equal(net.inverse(net(x)), x)
    assert_all_equal(*both(net, gradients_of(net, x)))

    def of_the_inverse():
        return torch.autograd.grad(weighed(net.inverse(x)), [x, *net.parameters()])

    assert_all_equal(*both(net, of_the_inverse))
    if kind != "both":
        moved = (layer(x) != x).any(0)
        assert not moved[kept].any()
        count = first.numel()
        J = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0], x[0])
        J = J.reshape(count, count)[~kept.flatten()]
        among = J[:, ~kept.flatten()]
        assert_equal(among, torch.diag(among.diagonal()))


@given(st.sampled_from(["tanh", "exp"]), st.integers(0, 2**31))
def test_gin_preserves_the_volume(scale, seed) -> None:
    torch.manual_seed(seed)
    layer = AffineCoupling(
        Conditioner(2, 4, 0), scale=scale, volume_preserving=True
    ).double()
    x = torch.randn(4, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0], x)
    assert abs(torch.linalg.slogdet(J).logabsdet) < 1e-12
    assert (J.diagonal()[2:] - 1).abs().max() > 1e-4
    assert torch.equal(layer.forward_and_log_det(x[None])[1], torch.zeros(1).double())


def test_a_callable_scale_may_have_parameters_and_trains() -> None:
    scale = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    layer = AffineCoupling(Conditioner(2, 4, 0), scale=scale).double()
    net, x = InvertibleSequential(layer, layer, anchors=0), torch.randn(3, 4).double()
    x.requires_grad_()
    assert {*scale.parameters()} <= {*net.parameters()}
    assert_all_equal(*both(net, gradients_of(net, x)))


@given(st.integers(0, 2**31))
def test_a_reversible_block_is_two_couplings(seed) -> None:
    torch.manual_seed(seed)
    f, g = Conditioner(2, 1, 0), Conditioner(1, 2, 0)
    block = ReversibleBlock(f, g, split=1)
    pair = InvertibleSequential(
        AdditiveCoupling(f, split=1, swap=True), AdditiveCoupling(g, split=1)
    )
    x = torch.randn(2, 3)
    assert torch.equal(block(x), pair(x))
    assert torch.equal(block.inverse(x), pair.inverse(x))


@pytest.mark.parametrize("kind", ["cayley", "matrix_exp", "householder"])
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_an_orthogonal_coupling_along_any_axis(kind, dim) -> None:
    moved = OrthogonalCoupling(Fitting(2, dim), channels=4, map=kind, dim=dim).double()
    layer = OrthogonalCoupling(Fitting(2, 1), channels=4, map=kind).double()
    layer.load_state_dict(moved.state_dict())
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    assert_equal(moved(x.movedim(1, dim)).movedim(dim, 1), layer(x))
    net = InvertibleSequential(*[moved] * 3, anchors=0)
    x = x.movedim(1, dim).requires_grad_()
    assert_equal(net.inverse(net(x)), x)
    assert_all_equal(*both(net, gradients_of(net, x)))


def test_the_keys_of_an_orthogonal_coupling_stay() -> None:
    layer = OrthogonalCoupling(nn.Linear(2, 2, bias=False), channels=4)
    assert {*layer.state_dict()} == {"vectors", "conditioner.weight"}


def test_masks_are_no_part_of_the_state_dict() -> None:
    mask = torch.tensor([True, False, True, False])
    layer = AdditiveCoupling(nn.Linear(2, 2, bias=False), split=mask)
    assert {*layer.state_dict()} == {"conditioner.weight"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdditiveCoupling(nn.Linear(2, 2), split=(2, 2, 2)), "has 3 sizes"),
        (lambda: AdditiveCoupling(nn.Linear(2, 2), split=(0, 2)), "split is 0"),
        (lambda: AdditiveCoupling(nn.Linear(2, 2), dim=0), "dim is 0, the axis of the"),
        (lambda: ReversibleBlock(nn.Linear(2, 2), nn.Linear(2, 2), dim=0), "dim is 0"),
        (
            lambda: AdditiveCoupling(nn.Linear(2, 2), split=torch.ones(4) > 0),
            "mask with all entries equal",
        ),
        (
            lambda: AffineCoupling(nn.Linear(2, 4), scale=torch.atan, bound=2.0),
            "bound is 2.0, but a callable scale has none",
        ),
        (
            lambda: (
                ReversibleBlock(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1), split=2)
                and ReversibleBlock(nn.Conv1d(2, 3, 1), nn.Conv1d(2, 2, 1), split=2)
            ),
            "f Conv1d returns 3 channels",
        ),
        (lambda: MomentumStep(nn.Linear(2, 2), gamma=0.0), "gamma is 0.0, but must be"),
        (lambda: MomentumStep(nn.Linear(2, 2), gamma=1.0), "gamma is 1.0, but must be"),
        (lambda: LeapfrogStep(nn.Linear(2, 2), step=0.0), "step is 0.0, but must be"),
        (
            lambda: OrthogonalCoupling(nn.Linear(2, 2), channels=4, map="qr"),
            "map is 'qr', but must be one of",
        ),
        (
            lambda: OrthogonalCoupling(
                nn.Linear(2, 2), channels=4, map="cayley", reflections=3
            ),
            "reflections is 3, but map='cayley' has none",
        ),
    ],
)
def test_arguments_that_cannot_be(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdditiveCoupling(nn.Linear(2, 2), split="rows"), "split is 'rows'"),
        (lambda: AdditiveCoupling(nn.Linear(2, 2), split=torch.ones(4)), "a mask is"),
        (lambda: AdditiveCoupling(nn.Linear(2, 2), dim=1.5), "dim is 1.5, but must be"),
        (lambda: AffineCoupling(nn.Linear(2, 4), scale=3), "scale is of type int"),
        (lambda: ReversibleBlock(torch.tanh, nn.Linear(2, 2)), "f is of type builtin"),
        (lambda: ConditionalAffine(torch.tanh), "conditioner is of type builtin"),
    ],
)
def test_arguments_of_the_wrong_type(make, message) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("split", "shape", "message"),
    [
        ((2, 3), (1, 4), r"sizes \(2, 3\), but the state has 4 entries"),
        (torch.tensor([True, False]), (1, 4), "mask of 2 entries, but the state has 4"),
        (torch.eye(2) > 0, (1, 4), r"mask of shape \(2, 2\), but does not fit"),
        (torch.eye(2) > 0, (1, 2, 3), r"mask of shape \(2, 2\), but does not fit"),
        ("checkerboard", (1, 4), "fewer than two positions for a checkerboard"),
        (None, (4,), "no dim 1 to be split"),
        (4, (1, 4), "cannot be split at 4"),
    ],
)
def test_states_that_do_not_fit(split, shape, message) -> None:
    layer = AdditiveCoupling(nn.Identity(), split=split)
    for direction in (layer, layer.inverse):
        with pytest.raises(ValueError, match=message):
            direction(torch.zeros(shape))


def test_what_networks_return_is_checked() -> None:
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="Linear returned shape"):
        ReversibleBlock(nn.Linear(2, 1), nn.Linear(2, 2))(x)
    with pytest.raises(ValueError, match=r"Linear returned shape .* needs 8 along dim"):
        ConditionalAffine(nn.Linear(3, 4))(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scale returned shape"):
        AffineCoupling(nn.Linear(2, 4), scale=lambda a: a.sum())(x)
    for layer in (MomentumStep(nn.Linear(4, 3)), LeapfrogStep(nn.Linear(4, 3))):
        with pytest.raises(ValueError, match="Linear returned shape"):
            layer((x, x))
        with pytest.raises(TypeError, match="is a tuple of two tensors, but got Ten"):
            layer(x)
        with pytest.raises(ValueError, match="two tensors of the same shape"):
            layer((x, x[:1]))


OPTIONS = {
    "sizes": {"split": (2, 2)},
    "swap": {"swap": True},
    "mask": {"split": torch.tensor([True, False, True, False])},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_closed_form_is_for_first_entries_only(options, recorded_calls) -> None:
    layers = [AdditiveCoupling(known(2, 2, 0), **options) for _ in range(3)]
    net, x = InvertibleSequential(*layers, anchors=0).double(), torch.randn(3, 4)
    x = x.double().requires_grad_()
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert {*recorded_calls} == {None}


@pytest.mark.parametrize("options", [{"map": "cayley"}, {"dim": -1}], ids=str)
def test_a_closed_form_is_for_reflections_of_the_first_axis(
    options, recorded_calls
) -> None:
    """The state has as many channels as entries along the last axis."""
    dims = 0 if "dim" in options else 1
    layers = [
        OrthogonalCoupling(known(2, 2, dims), channels=4, **options) for _ in range(3)
    ]
    net = InvertibleSequential(*layers, anchors=0).double()
    x = torch.randn(2, 4, 4).double().requires_grad_()
    assert_equal(net.inverse(net(x)), x)
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert {*recorded_calls} == {None}
