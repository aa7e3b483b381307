"""What only the layers that mix and scale channels promise."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import invtorch
from invtorch import (
    ActNorm,
    AdditiveCoupling,
    ElementwiseAffine,
    Householder1x1,
    InvertibleSequential,
    LU1x1,
    Orthogonal1x1,
    Permute,
)
from tests.registry import perturbed
from tests.tolerances import assert_equal, relative_error

ALONG = {
    "Householder1x1": lambda dim: Householder1x1(4, 2, dim=dim),
    "Orthogonal1x1": lambda dim: Orthogonal1x1(4, dim=dim),
    "LU1x1": lambda dim: LU1x1(4, dim=dim),
    "Permute": lambda dim: Permute(4, dim=dim),
    "ElementwiseAffine": lambda dim: ElementwiseAffine(4, dim=dim),
    "ActNorm": lambda dim: ActNorm(4, dim=dim),
    "ElementwiseAffine of entries": lambda dim: ElementwiseAffine((4, 3), dim=dim),
}
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.sampled_from(sorted(ALONG)), st.sampled_from([1, 2, 3, -1, -2, -3]), seeds)
def test_dim_is_the_axis_of_the_channels(name, dim, seed) -> None:
    if "entries" in name and dim in (3, -1):
        dim = 1
    torch.manual_seed(seed)
    moved = perturbed(ALONG[name](dim)).double()
    layer = ALONG[name](1).double()
    layer.load_state_dict(moved.state_dict())
    channels = (dim, dim + 1) if "entries" in name and dim < 0 else (dim,)
    if "entries" in name:
        channels = (dim, dim + 1)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    first = tuple(range(1, 1 + len(channels)))
    z = x.movedim(first, channels)
    for direction in ("forward", "inverse"):
        if name == "ActNorm":
            for each in (moved, layer):
                each.initialize(x if each is layer else z)
        y, log_det = getattr(layer, f"{direction}_and_log_det")(x)
        found, found_log_det = getattr(moved, f"{direction}_and_log_det")(z)
        assert_equal(found.movedim(channels, first), y)
        assert_equal(found_log_det, log_det)


@given(st.integers(1, 6), st.sampled_from(["cayley", "matrix_exp"]), seeds)
def test_the_matrix_is_orthogonal_in_the_precision_of_the_state(n, kind, seed) -> None:
    torch.manual_seed(seed)
    layer = perturbed(Orthogonal1x1(n, map=kind))
    W = layer(torch.eye(n, dtype=torch.float64))
    assert_equal(W.T @ W, torch.eye(n, dtype=torch.float64))
    double = copy.deepcopy(layer).double()
    W = double(torch.eye(n, dtype=torch.float64))
    assert_equal(W.T @ W, torch.eye(n, dtype=torch.float64))
    expected = torch.nn.utils.parametrizations.orthogonal(
        nn.Linear(n, n, bias=False), orthogonal_map=kind
    )
    keys = {k.replace("matrix.", "") for k in layer.state_dict()}
    assert keys == {*expected.state_dict()}


@given(st.integers(1, 6), seeds)
def test_lu_is_the_product_of_its_factors(n, seed) -> None:
    layer = LU1x1(n, generator=generator(seed)).double()
    W = layer(torch.eye(n, dtype=torch.float64)).T
    assert relative_error(W.T @ W, torch.eye(n, dtype=torch.float64)) < 1e-5
    perturbed(layer)
    W = layer(torch.eye(n, dtype=torch.float64)).T
    x = torch.randn(2, n, 3, dtype=torch.float64)
    assert_equal(layer(x), torch.einsum("oi,bip->bop", W, x))
    expected = 3 * torch.linalg.slogdet(W).logabsdet
    assert torch.allclose(layer.forward_and_log_det(x)[1], expected.expand(2))
    other = LU1x1(n).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert {"permutation", "signs"} <= {*layer.state_dict()}
    assert invtorch.Glow1x1 is LU1x1


def test_half_precision_solves_in_higher_precision() -> None:
    layer, x = LU1x1(16).bfloat16(), torch.randn(4, 16)
    assert relative_error(layer.inverse(layer(x)), x) < 1e-5
    rotation = perturbed(Orthogonal1x1(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(layer.inverse(layer(x)), x) < 1e-5
        assert relative_error(rotation.inverse(rotation(x)), x) < 1e-5


@given(st.integers(1, 9), seeds)
def test_permutations(n, seed) -> None:
    x = torch.arange(n)[None].double()
    random = Permute(n, generator=generator(seed))
    assert torch.equal(random(x), Permute(n, generator=generator(seed))(x))
    assert torch.equal(random(x).sort().values, x)
    assert torch.equal(random.inverse(random(x)), x)
    assert torch.equal(Permute(n, random.order)(x), random(x))
    assert torch.equal(Permute(n, "reverse")(x), x.flip(1))
    halves = x.tensor_split((n // 2,), 1)
    assert torch.equal(Permute(n, "swap")(x), torch.cat(halves[::-1], 1))
    other = Permute(n)
    other.load_state_dict(random.state_dict())
    assert torch.equal(other(x), random(x))


@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.01, 100), seeds)
def test_actnorm_normalizes_its_first_batch_only(channels, batch, scale, seed) -> None:
    torch.manual_seed(seed)
    layer = ActNorm(channels).double()
    x = scale * torch.randn(batch, channels, 4, dtype=torch.float64) - 3
    y = layer(x)
    flat = y.movedim(1, 0).flatten(1)
    assert_equal(flat.mean(1), torch.zeros_like(flat.mean(1)), least=1.0)
    assert_equal(flat.std(1), torch.ones_like(flat.std(1)))
    again = layer(x + 1)
    assert_equal(again, y + layer.log_scale.exp()[:, None])
    resumed = ActNorm(channels).double()
    resumed.load_state_dict(layer.state_dict())
    assert torch.equal(resumed(x + 1), again)
    assert torch.equal(copy.deepcopy(layer)(x + 1), again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_channels_and_single_samples_are_only_shifted(dtype) -> None:
    for shape in ((1, 3), (4, 3), (2, 3, 5)):
        x = torch.full(shape, 1e3 / 3, dtype=dtype)
        layer = ActNorm(3).to(dtype)
        assert (layer(x).abs() <= 8 * torch.finfo(dtype).eps * x).all()
        assert torch.equal(layer.log_scale, torch.zeros_like(layer.log_scale))


@given(st.integers(-30, 30), st.sampled_from([torch.float32, torch.float64]), seeds)
def test_actnorm_normalizes_at_any_scale(exponent, dtype, seed) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(6, 3, 4, dtype=torch.float64) + 1) * 10.0**exponent
    y = ActNorm(3).to(dtype)(x.to(dtype))
    assert_equal(y.std((0, 2)), torch.ones(3, dtype=dtype), "deviation")
    assert y.mean((0, 2)).abs().max() < 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_actnorm_is_not_initialized_from_what_is_not_finite(value) -> None:
    net, x = InvertibleSequential(ActNorm(3), ActNorm(3)), torch.randn(4, 3, 5)
    spoiled = x.clone()
    spoiled[1, 2, 3] = value
    with pytest.raises(ValueError, match="ActNorm got NaN or Inf to initialize from"):
        net(spoiled)
    y = net(x)
    assert_equal(y.std((0, 2)), torch.ones(3))


def test_actnorm_refuses_what_it_cannot_know() -> None:
    layer, x = ActNorm(3), torch.randn(4, 3)
    for call in (layer.inverse, layer.inverse_and_log_det):
        with pytest.raises(RuntimeError, match="ActNorm initializes from its first"):
            call(x)
    assert_equal(ActNorm(3).eval()(x), x)
    with pytest.raises(ValueError, match="empty batch"):
        layer(x[:0])
    with pytest.raises(ValueError, match=r"does not have sizes \(3,\)"):
        layer(torch.randn(4, 2))
    assert not layer.initialized
    layer(x)
    assert layer.initialized
    assert_equal(layer.inverse(layer(x)), x)
    layer.load_state_dict(ActNorm(3).state_dict())
    with pytest.raises(RuntimeError, match="ActNorm initializes from its first"):
        layer.inverse(x)


def test_a_container_of_actnorms_is_initialized_layer_by_layer() -> None:
    net = InvertibleSequential(
        ActNorm(4), AdditiveCoupling(nn.Linear(2, 2)), ActNorm(4)
    )
    x = 5 * torch.randn(64, 4) + 2
    with torch.no_grad():
        y = net(x)
    assert torch.allclose(y.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(y.std(0), torch.ones(4), atol=1e-5)
    net(x).square().mean().backward()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LU1x1(0), ValueError, "channels is 0, but must be at least 1"),
        (lambda: ActNorm(0), ValueError, "channels is 0, but must be at least 1"),
        (lambda: ElementwiseAffine((2, 0)), ValueError, "shape is 0, but must be at"),
        (lambda: Permute("4"), TypeError, "channels is '4', but must be a whole"),
        (
            lambda: Permute(3, "sorted"),
            ValueError,
            "order is 'sorted', but",
        ),
        (lambda: Permute(3, [0, 1, 1]), ValueError, "each of the indices from 0 to 2"),
        (lambda: Permute(3, [0, 1]), ValueError, "each of the indices from 0 to 2"),
        (lambda: Orthogonal1x1(3, map="qr"), ValueError, "map is 'qr', but must be"),
        (lambda: LU1x1(3, dim=0), ValueError, "dim is 0, the axis of the batch"),
        (lambda: Householder1x1(3, dim=0), ValueError, "dim is 0, the axis of the"),
        (lambda: Permute(3, dim="x"), TypeError, "dim is 'x', but must be a whole"),
    ],
)
def test_arguments_that_cannot_be(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", sorted(ALONG))
def test_states_without_these_channels(name) -> None:
    layer = ALONG[name](1)
    for shape in ((2, 3), (4,), (2,)):
        with pytest.raises(ValueError, match="does not have"):
            layer(torch.zeros(shape))


@pytest.mark.parametrize("name", ["LU1x1", "Orthogonal1x1"])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_parameters_and_real_states(name) -> None:
    layer = ALONG[name](1).to(torch.complex64)
    with pytest.raises(ValueError, match="matrix is complex, but the state is real"):
        layer(torch.zeros(1, 4))


@pytest.mark.parametrize("name", ["LU1x1", "ElementwiseAffine"])
def test_complex_states_have_no_log_determinant(name) -> None:
    with pytest.raises(NotImplementedError, match="no log-determinant of a complex"):
        ALONG[name](1).forward_and_log_det(torch.zeros(1, 4, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zeros", [[0], [1, 2], [0, 1, 2]])
def test_vectors_of_zeros_reflect_nothing(dtype, zeros) -> None:
    others = [i for i in range(3) if i not in zeros]
    mix, x = Householder1x1(4).to(dtype), torch.randn(2, 4, dtype=dtype)
    with torch.no_grad():
        mix.vectors[zeros] = 0
    expected = x
    if others:
        fewer = Householder1x1(4, len(others)).to(dtype)
        fewer.vectors = nn.Parameter(mix.vectors.detach()[others])
        expected = fewer(x)
    torch.testing.assert_close(mix(x), expected)
    torch.testing.assert_close(mix.inverse(mix(x)), x, atol=0.1, rtol=0.1)
    mix(x).square().sum().backward()
    assert torch.isfinite(mix.vectors.grad).all()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_data_need_complex_parameters_to_be_normalized() -> None:
    x = torch.randn(50, 3, dtype=torch.complex64) + (1 + 2j)
    with pytest.raises(TypeError, match="real parameters, but got complex data"):
        InvertibleSequential(ActNorm(3))(x)
    y = InvertibleSequential(ActNorm(3).to(torch.complex64))(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.complex64))
    torch.testing.assert_close(y.std(0), torch.ones(3))
