"""Modules with the conventions of FrEIA are layers, and layers are such modules."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    ActNorm,
    AffineCoupling,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    PixelUnshuffle,
    Split,
)
from invtorch.compat.freia import FromFreia, ToFreia
from invtorch.testing import (
    assert_gradients_match,
    assert_invertible,
    assert_log_det,
    assert_memory_flat,
    assert_right_or_raises,
)
from tests.compilation import compiled
from tests.parts import Conditioner
from tests.tolerances import assert_equal

# --- stand-ins ------------------------------------------------------------------------

# how a log-determinant that is the same for all samples may be returned
RETURNED = {
    "float": lambda total, batch: total.item(),
    "scalar": lambda total, batch: total,
    "one": lambda total, batch: total.reshape(1),
    "per sample": lambda total, batch: total.expand(batch),
}


class Scaling(nn.Module):
    """Scales its inputs, with what FrEIA's modules may return."""

    def __init__(self, dims_in, dims_c=(), returned="per sample", outside=list):
        super().__init__()
        self.dims_in, self.dims_c = dims_in, list(dims_c)
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.returned, self.outside = returned, outside

    def shift(self, c):
        return sum((t.mean(tuple(range(1, t.ndim))) for t in c or []), torch.zeros(1))

    def forward(self, x, c=None, rev=False, jac=True):
        sign = -1 if rev else 1
        shift = self.shift(c)
        total = sign * self.log_scale * sum(t.shape[1:].numel() for t in x)
        log_det = RETURNED[self.returned](total, len(x[0])) if jac else None
        moved = []
        for t in x:
            s = shift.reshape(-1, *[1] * (t.ndim - 1))
            scale = (sign * self.log_scale).exp()
            moved.append((t - s) * scale if rev else t * scale + s)
        return self.outside(moved), log_det

    def output_dims(self, dims):
        return dims


class Halves(nn.Module):
    """Splits its channels in two, or joins them."""

    dims_c = ()

    def __init__(self, dims_in):
        super().__init__()
        self.dims_in = dims_in

    def forward(self, x, rev=False, jac=True):  # noqa: ARG002
        if rev:
            return [torch.cat(x, 1)], 0
        return x[0].chunk(2, 1), 0

    def output_dims(self, dims):
        (channels, *space) = dims[0]
        return [(channels // 2, *space)] * 2


def vectors(batch: int = 3, features: int = 4):
    return torch.randn(batch, features, dtype=torch.float64)


@given(
    st.sampled_from([*RETURNED]),
    st.sampled_from([list, tuple]),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_whatever_is_returned_becomes_one_number_per_sample(
    returned, outside, dims, batch, conditional, seed
) -> None:
    torch.manual_seed(seed)
    shapes = [(2, *(3,) * n) for n in dims]
    module = Scaling(shapes, [(5,)] if conditional else (), returned, outside)
    tensors = [torch.randn(batch, *shape, dtype=torch.float64) for shape in shapes]
    context = [torch.randn(batch, 5, dtype=torch.float64)]
    layer = FromFreia(module)
    x = tensors[0] if len(tensors) == 1 else tuple(tensors)
    assert_invertible(layer, x, *context)
    if returned != "float":
        assert_log_det(layer, x, *context)
    assert_gradients_match(layer, x, *context)
    log_det = layer.forward_and_log_det(x, *context)[1]
    assert log_det.shape == (batch,)
    assert log_det.dtype == torch.float64
    entries = sum(t[0].numel() for t in tensors)
    assert_equal(log_det, torch.full((batch,), 0.3 * entries, dtype=torch.float64))


def test_more_and_fewer_tensors() -> None:
    layer = FromFreia(Halves([(4, 3)]))
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    assert_invertible(layer, x)
    assert_log_det(layer, x)
    first, second = layer(x)
    assert_equal(first, x[:, :2])
    assert_equal(second, x[:, 2:])


def test_memory_does_not_depend_on_the_number_of_modules() -> None:
    assert_memory_flat(FromFreia(Scaling([(8, 6)])), torch.randn(2, 8, 6).double())


@pytest.mark.slow
def test_no_ordinary_use_is_wrong() -> None:
    assert_right_or_raises(FromFreia(Scaling([(4,)], [(5,)])), vectors(), vectors(3, 5))


def test_conditions_are_chosen_from_the_context() -> None:
    x, a, b = vectors(), vectors(3, 5), vectors(3, 2)
    whole = FromFreia(Scaling([(4,)], [(5,), (2,)]))
    second = FromFreia(Scaling([(4,)], [(2,)]), conditions=(1,))
    without = FromFreia(Scaling([(4,)]))
    assert "conditions=(1,)" in repr(second)
    net = InvertibleSequential(whole, second, without)
    shift = (a.mean(1) + b.mean(1)).unsqueeze(1)
    scale = math.exp(0.3)
    y = ((x * scale + shift) * scale + b.mean(1, keepdim=True)) * scale
    assert_equal(net(x, a, b), y)
    assert_equal(net.inverse(y, a, b), x)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated")
def test_compiled_gradients_are_those_of_plain_autograd() -> None:
    layers = [FromFreia(Scaling([(4,)], [(5,)])) for _ in range(3)]
    net = InvertibleSequential(*layers, anchors=0)
    x, c = vectors().requires_grad_(), vectors(3, 5)
    inputs = [x, *net.parameters()]
    found = torch.autograd.grad(compiled(net)(x, c).square().sum(), inputs)
    net.memory = "store"
    expected = torch.autograd.grad(net(x, c).square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


def image_scaling(dims=((2, 4, 4),)) -> Scaling:
    return Scaling([*dims])


class Returns(Scaling):
    """Returns what a function makes of the right result."""

    def __init__(self, change, dims_in=((4,),)):
        super().__init__(list(dims_in))
        self.change = change

    def forward(self, x, c=None, rev=False, jac=True):
        return self.change(*super().forward(x, c, rev, jac), rev)


WRONG_RETURNS = {
    "a tensor alone": (lambda x, j, rev: x[0], "must return a tuple"),
    "three things": (lambda x, j, rev: (x, j, 0), "must return a tuple"),
    "no log-determinant": (lambda x, j, rev: (x, None), "NoneType as log-determinant"),
    "one text": (lambda x, j, rev: (x, "zero"), "str as log-determinant"),
    "one column": (lambda x, j, rev: (x, j.unsqueeze(1)), r"of shape \(3, 1\)"),
    "added wrongly": (
        lambda x, j, rev: (x, j.unsqueeze(1) + j),
        r"of shape \(3, 3\) for a batch of 3",
    ),
    "for each entry": (lambda x, j, rev: (x, 0 * x[0]), r"of shape \(3, 4\)"),
    "for another batch": (lambda x, j, rev: (x, j[:2]), r"of shape \(2,\)"),
    "the same sign": (lambda x, j, rev: (x, j.abs()), "must have other signs"),
    "zero in reverse": (lambda x, j, rev: (x, 0.0 if rev else j), "must have other"),
    "no tensors": (lambda x, j, rev: ([], j), "list as its output"),
    "numbers": (lambda x, j, rev: ([1.0], j), "list as its output"),
    "fewer entries": (lambda x, j, rev: ([x[0][:, :3]], j), "another number of"),
    "fewer samples": (lambda x, j, rev: ([x[0].T], j), "another number of"),
}


@pytest.mark.parametrize("name", sorted(WRONG_RETURNS))
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
@pytest.mark.parametrize("training", [True, False])
def test_wrong_returns_are_refused(name, method, training) -> None:
    change, message = WRONG_RETURNS[name]
    layer = FromFreia(Returns(change)).train(training)
    with pytest.raises(RuntimeError, match=message) as error:
        getattr(layer, method)(vectors())
    assert "Returns" in str(error.value)


def test_a_sign_is_checked_until_it_shows() -> None:
    layer = FromFreia(Returns(lambda x, j, rev: (x, j * (-1 if rev else 1))))
    with torch.no_grad():
        layer.module.log_scale.zero_()
    layer.forward_and_log_det(vectors())  # zero has no sign
    with torch.no_grad():
        layer.module.log_scale.fill_(0.2)
    with pytest.raises(RuntimeError, match="must have other signs"):
        layer.forward_and_log_det(vectors())


@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_an_empty_batch_checks_nothing(method) -> None:
    module = Scaling([(4,)])
    layer = FromFreia(module)
    state, log_det = getattr(layer, method)(vectors(0))
    assert state.shape == (0, 4)
    assert log_det.shape == (0,)
    with torch.no_grad():
        module.log_scale.zero_()
    forward = module.forward

    def wrong(x, c=None, rev=False, jac=True):
        return forward(x, c, rev, jac)[0], torch.tensor(1.0)

    module.forward = wrong
    with pytest.raises(RuntimeError, match="must have other signs"):
        getattr(layer, method)(vectors())


def test_the_check_leaves_modules_as_they_are() -> None:
    module = Scaling([(4,)])
    module.norm = nn.BatchNorm1d(4)
    module.norm.eval()
    layer = FromFreia(module)
    x = vectors()
    state = torch.random.get_rng_state()
    layer.forward_and_log_det(x)
    assert module.training
    assert not module.norm.training
    assert torch.equal(state, torch.random.get_rng_state())


class WithoutJac(nn.Module):
    """Lacks an argument."""

    dims_in, dims_c = ((4,),), ()

    def forward(self, x, rev=False):  # noqa: ARG002
        return x

    def output_dims(self, dims):
        return dims


WRONG_USES = {
    "no module": (lambda: FromFreia("block"), TypeError, "must be an nn.Module"),
    "not of FrEIA": (lambda: FromFreia(nn.Linear(2, 2)), TypeError, "no `dims_in`"),
    "no jac": (lambda: FromFreia(WithoutJac()), TypeError, "no argument `jac`"),
    "another shape": (
        lambda: FromFreia(image_scaling())(torch.zeros(1, 2, 6, 6)),
        ValueError,
        r"made for \[\(2, 4, 4\)\]",
    ),
    "no condition": (
        lambda: FromFreia(Scaling([(4,)], [(5,)]))(vectors()),
        ValueError,
        "has 1 conditions, but gets 0",
    ),
    "too many conditions": (
        lambda: FromFreia(Scaling([(4,)], [(5,)]))(vectors(), vectors(), vectors()),
        ValueError,
        "choose with `conditions=`",
    ),
    "a condition of another shape": (
        lambda: FromFreia(Scaling([(4,)], [(5,)]))(vectors(), vectors(3, 6)),
        ValueError,
        r"conditions of shapes \[\(6,\)\]",
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG_USES))
def test_wrong_uses_are_refused(name) -> None:
    use, error, message = WRONG_USES[name]
    with pytest.raises(error, match=message):
        use()


def in_freia(kind: type) -> type:
    """Return a class that says it is FrEIA's own."""
    return type(kind.__name__, (kind,), {"__module__": "FrEIA.modules"})


def test_modules_that_can_not_be_corrected_are_named() -> None:
    for name in ("InvAutoFC", "InvAutoConv2D", "IResNetLayer"):
        kind = in_freia(type(name, (Scaling,), {}))
        with pytest.raises(ValueError, match=f"{name} of FrEIA can't be used"):
            FromFreia(kind([(4,)]))


# --- our modules in graphs ------------------------------------------------------------


def network(channels: int = 4, dims: int = 0) -> InvertibleSequential:
    conditioner = Conditioner(channels // 2, channels, dims)
    coupling = AffineCoupling(conditioner, bound=1.5)
    return InvertibleSequential(Householder1x1(channels), coupling).double()


@given(st.integers(0, 2), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_our_module_follows_the_conventions(dims, batch, conditional, seed) -> None:
    torch.manual_seed(seed)
    net, shape, shapes_c = network(4, dims), (4, *(5,) * dims), []
    c = []
    if conditional:
        shapes_c = [(1, *shape[1:])]
        c = [torch.randn(batch, *shapes_c[0], dtype=torch.float64)]
    node = ToFreia([shape], shapes_c, module=net)
    x = torch.randn(batch, *shape, dtype=torch.float64)
    (z,), log_det = node([x], c=c or None)
    expected, expected_log_det = net.forward_and_log_det(x, *c)
    assert_equal(z, expected)
    assert_equal(log_det, expected_log_det)
    (back,), reverse = node((z,), c, rev=True)
    assert_equal(back, x)
    assert_equal(reverse, -log_det)
    for rev in (False, True):
        (alone,), nothing = node([x], c, rev=rev, jac=False)
        assert_equal(alone, node([x], c, rev=rev)[0][0])
        assert math.isnan(nothing)
    assert node.output_dims([shape]) == [shape]


@pytest.mark.parametrize("training", [True, False])
def test_shapes_of_the_output_are_learned_without_a_trace(training) -> None:
    norm = ActNorm(4)
    net = InvertibleSequential(PixelUnshuffle(2, dims=2), norm, Split(1)).double()
    net.train(training)
    node = ToFreia([(1, 6, 4)], module=net)
    assert node.output_dims([(1, 6, 4)]) == [(1, 3, 2), (3, 3, 2)]
    assert not norm.initialized
    assert net.training == training
    x = torch.randn(3, 1, 6, 4, dtype=torch.float64)
    z, _ = node([x])
    assert [t.shape for t in z] == [(3, 1, 3, 2), (3, 3, 3, 2)]
    assert_equal(node(z, rev=True)[0][0], x)


def test_there_and_back() -> None:
    x, net = vectors(), network()
    layer = FromFreia(ToFreia([(4,)], module=net))
    y, log_det = layer.forward_and_log_det(x)
    expected, expected_log_det = net.forward_and_log_det(x)
    assert_equal(y, expected)
    assert_equal(log_det, expected_log_det)
    assert_gradients_match(layer, x)


def node(**options) -> ToFreia:
    return ToFreia([(4,)], module=network(), **options)


WRONG_NODES = {
    "no module": (lambda: ToFreia([(4,)]), TypeError, "must be an InvertibleModule"),
    "a tensor": (lambda: node()(vectors()), TypeError, "x_or_z is a Tensor"),
    "a tensor as condition": (
        lambda: node()([vectors()], vectors()),
        TypeError,
        "c is a Tensor",
    ),
    "two tensors": (lambda: node()([vectors()] * 2), ValueError, "made for"),
    "another shape": (lambda: node()([vectors(3, 6)]), ValueError, r"\[\(6,\)\]"),
    "no condition": (lambda: node(dims_c=[(1,)])([vectors()]), ValueError, "`c`"),
    "other dims": (lambda: node().output_dims([(6,)]), ValueError, "input_dims"),
    "no log-determinant": (
        lambda: ToFreia([(4,)], module=NoLogDet())([vectors()]),
        NotImplementedError,
        "NoLogDet has no log-determinant",
    ),
}


class NoLogDet(InvertibleModule):
    """Has no log-determinant."""

    def forward(self, x):
        return 2 * x

    def inverse(self, y):
        return y / 2


@pytest.mark.parametrize("name", sorted(WRONG_NODES))
def test_wrong_nodes_are_refused(name) -> None:
    use, error, message = WRONG_NODES[name]
    with pytest.raises(error, match=message):
        use()
