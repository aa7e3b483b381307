"""Scripts for memcnn run on the compatibility layer."""

import copy
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import invtorch.compat.memcnn as memcnn
from invtorch.compat.memcnn.models import additive, affine, resnet, revop
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.tolerances import assert_equal

ROOT = Path(__file__).parents[2]
# what asserts a fault of memcnn: it writes `.grad` of tensors that are not leaves
FAULTS = ["test_chained_invertible_module_wrapper_shared_fwd_and_bwd_train_passes"]

SIGNATURES = {
    "InvertibleModuleWrapper": "fn, keep_input=False, keep_input_inverse=False, "
    "num_bwd_passes=1, disable=False, preserve_rng_state=False",
    "ReversibleBlock": "Fm, Gm=None, coupling='additive', keep_input=False, "
    "keep_input_inverse=False, implementation_fwd=-1, implementation_bwd=-1, "
    "adapter=None",
    "AdditiveCoupling": "Fm, Gm=None, implementation_fwd=-1, implementation_bwd=-1, "
    "split_dim=1",
    "AffineCoupling": "Fm, Gm=None, adapter=None, implementation_fwd=-1, "
    "implementation_bwd=-1, split_dim=1",
    "AffineAdapterNaive": "module",
    "AffineAdapterSigmoid": "module",
    "create_coupling": "Fm, Gm=None, coupling='additive', implementation_fwd=-1, "
    "implementation_bwd=-1, adapter=None",
    "is_invertible_module": "module_in, test_input_shape, "
    "test_input_dtype=torch.float32, atol=1e-06, random_seed=42",
}


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_public_names_have_the_arguments_of_memcnn(name) -> None:
    signature = inspect.signature(getattr(memcnn, name))
    plain = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signature.parameters.values()
    ]
    shown = str(inspect.Signature(plain))
    assert shown == f"({SIGNATURES[name]})"


def test_all_public_names_are_there() -> None:
    assert sorted(memcnn.__all__) == sorted(SIGNATURES)
    blocks = {"RevBasicBlock", "RevBottleneck", "BasicBlock", "Bottleneck", "ResNet"}
    assert blocks <= {*resnet.__all__}
    assert "AdditiveBlock" in additive.__all__
    assert "AffineBlock" in affine.__all__


def network(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, outputs, 3, padding=1), nn.Tanh())


COUPLINGS = {
    "additive": lambda: memcnn.AdditiveCoupling(network(), network()),
    "naive": lambda: memcnn.AffineCoupling(
        network(), adapter=memcnn.AffineAdapterNaive
    ),
    "sigmoid": lambda: memcnn.AffineCoupling(
        network(4), adapter=memcnn.AffineAdapterSigmoid
    ),
}


def expected(name: str, layer, x):
    x1, x2 = x.chunk(2, 1)
    if name == "additive":
        y1 = x1 + layer.Fm(x2)
        return torch.cat([y1, x2 + layer.Gm(y1)], 1)

    def parameters(module, z):
        h = module.f(z)
        if name == "naive":
            return h.exp(), h
        return torch.sigmoid(h[:, 1::2] + 2), h[:, 0::2]

    s, t = parameters(layer.Fm, x2)
    y1 = s * x1 + t
    s, t = parameters(layer.Gm, y1)
    return torch.cat([y1, s * x2 + t], 1)


def batch(requires_grad: bool = False):
    return torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=requires_grad)


@pytest.mark.parametrize("name", sorted(COUPLINGS))
@given(st.integers(0, 2**31))
def test_formulas(name, seed) -> None:
    torch.manual_seed(seed)
    layer, x = COUPLINGS[name]().double(), batch()
    y, log_det = layer.forward_and_log_det(x)
    assert_equal(y, expected(name, layer, x))
    assert_equal(layer.inverse(y), x)
    jacobian = torch.autograd.functional.jacobian(layer, x[:1]).view(24, 24)
    exact = torch.linalg.slogdet(jacobian).logabsdet
    assert_equal(log_det[0], exact, least=1.0)


class Returns(nn.Module):
    """Returns numbers of one size along each axis, in as many tensors as asked."""

    def __init__(self, sizes, tensors) -> None:
        super().__init__()
        self.sizes, self.tensors = sizes, tensors

    def forward(self, x):
        value = (1 + x.mean().sin() / 2).expand(self.sizes)
        return value if self.tensors is None else (value,) * self.tensors


@given(
    st.sampled_from(["additive", "affine"]),
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3)),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.sampled_from([None, 1, 2, 3]),
    st.integers(1, 3),
)
def test_what_a_network_returns_fits_or_is_refused(kind, shape, sizes, tensors, dim):
    """Sizes of 1 are those of all entries; others must be those of the half."""
    layer = memcnn.create_coupling(Returns(sizes, tensors), coupling=kind)
    layer.split_dim = dim
    x = torch.randn(shape, dtype=torch.float64)
    try:
        y, log_det = layer.forward_and_log_det(x)
    except (TypeError, ValueError, RuntimeError) as error:
        text = str(error)
        ours = ("has no halves", "let it return what fits", "must return scale and")
        torch_s = ("must match the size", "unsupported operand")
        assert any(part in text for part in (*ours, *torch_s)), text
        for call in (layer.forward, layer.inverse, layer.inverse_and_log_det):
            with pytest.raises(type(error)):
                call(x)
        return
    assert y.shape == x.shape
    assert_equal(layer.inverse(y), x)
    count = x[0].numel()
    for i, one in enumerate(torch.autograd.functional.jacobian(layer, x)):
        exact = torch.linalg.slogdet(one[..., i, :, :].reshape(count, count)).logabsdet
        assert_equal(log_det[i], exact, least=1.0)


@pytest.mark.parametrize("name", sorted(COUPLINGS))
@given(st.integers(0, 2**31), st.booleans(), st.booleans(), st.integers(1, 6))
def test_gradients_equal_plain_autograd(name, seed, keep, inverse, depth) -> None:
    torch.manual_seed(seed)
    wrapper = memcnn.InvertibleModuleWrapper
    layers = [wrapper(COUPLINGS[name](), keep, keep).double() for _ in range(depth)]
    x = batch(requires_grad=True)

    def gradients(disable):
        y = x
        for layer in layers:
            layer.disable = disable
            y = layer.inverse(y) if inverse else layer(y)
        leaves = [x, *(p for layer in layers for p in layer.parameters())]
        return torch.autograd.grad(y.square().sum(), leaves)

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert_equal(a, b)


def test_several_tensors() -> None:
    class Halves(nn.Module):
        def forward(self, x):
            return tuple(t.clone() for t in x.chunk(2, 1))

        def inverse(self, a, b):
            return torch.cat([a, b], 1)

    split = memcnn.InvertibleModuleWrapper(Halves())
    x = batch(requires_grad=True)
    a, b = split(x)
    y = split.inverse(a * 2, b.tanh())
    (found,) = torch.autograd.grad(y.square().sum(), x)
    a, b = x.chunk(2, 1)
    plain = torch.cat([2 * a, b.tanh()], 1).square().sum()
    assert_equal(found, torch.autograd.grad(plain, x)[0])


def test_keys_and_order_of_parameters() -> None:
    layer = memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(nn.Conv1d(2, 2, 1)))
    assert [*layer.state_dict()] == [
        "_fn.Gm.weight",
        "_fn.Gm.bias",
        "_fn.Fm.weight",
        "_fn.Fm.bias",
    ]
    adapted = memcnn.AffineCoupling(network(), adapter=memcnn.AffineAdapterNaive)
    assert "Fm.f.0.weight" in adapted.state_dict()


def test_copies_do_not_share() -> None:
    layer, x = memcnn.InvertibleModuleWrapper(COUPLINGS["additive"]()).double(), batch()
    other = copy.deepcopy(layer)
    assert_equal(other(x), layer(x))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert_equal(other(x), x)
    assert not torch.equal(layer(x), x)


def test_inputs_and_several_backward_passes() -> None:
    layer = memcnn.InvertibleModuleWrapper(COUPLINGS["additive"]()).double()
    x = batch(requires_grad=True)
    before = x.detach().clone()
    y = layer(x)
    assert torch.equal(x, before)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    second = torch.autograd.grad(y.sum(), x)
    assert_equal(first[0], second[0])


@ON_THE_CPU
def test_wrappers_one_after_another_keep_no_more_than_a_few() -> None:
    def live(count: int) -> float:
        layers = [
            memcnn.InvertibleModuleWrapper(COUPLINGS["additive"]())
            for _ in range(count)
        ]
        x = torch.randn(2, 4, 512)
        net = nn.Sequential(*layers)
        return measure_memory(lambda: net(x)).live / x.nbytes

    assert max(map(live, (4, 16, 64))) <= 9


@pytest.mark.parametrize("block", ["RevBasicBlock", "RevBottleneck", "BasicBlock"])
def test_networks_train(block) -> None:
    torch.manual_seed(0)
    options = {"channels_per_layer": [8, 8, 16, 16], "init_kernel_size": 3}
    net = resnet.ResNet(
        getattr(resnet, block), [2, 2, 2], 3, strides=[1, 1, 2, 2], **options
    )
    x, classes = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    losses = []
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@given(st.integers(0, 2**31), st.sampled_from(sorted(COUPLINGS)))
def test_is_invertible_module(seed, name) -> None:
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    layer = COUPLINGS[name]().double()
    state = torch.get_rng_state()
    shape, dtype = (2, 4, 6), torch.float64
    assert memcnn.is_invertible_module(layer, shape, dtype)
    wrapped = memcnn.InvertibleModuleWrapper(layer)
    assert memcnn.is_invertible_module(wrapped, shape, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        layer.inverse = lambda y: y * 2
    assert not memcnn.is_invertible_module(layer, shape, dtype)


def test_deprecated_names_warn() -> None:
    with pytest.warns(DeprecationWarning, match="InvertibleModuleWrapper"):
        revop.ReversibleBlock(network())
    with pytest.warns(DeprecationWarning, match="implementations other than -1"):
        additive.AdditiveBlock(network())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: memcnn.create_coupling(network(), coupling="x"),
            NotImplementedError,
            "x",
        ),
        (
            lambda: memcnn.is_invertible_module(COUPLINGS["naive"](), "4"),
            ValueError,
            "4",
        ),
        (
            lambda: memcnn.is_invertible_module(COUPLINGS["naive"](), ()),
            ValueError,
            "must be a shape",
        ),
        (lambda: memcnn.InvertibleModuleWrapper(3), TypeError, "fn is of type int"),
        (lambda: memcnn.AdditiveCoupling(torch.tanh), TypeError, "Fm is of type"),
        (lambda: memcnn.AffineCoupling(network(), 3), TypeError, "Gm is of type int"),
        (
            lambda: memcnn.InvertibleModuleWrapper(COUPLINGS["naive"]())(),
            TypeError,
            "without a tensor",
        ),
        (
            lambda: memcnn.AffineAdapterSigmoid(nn.Identity())(torch.ones(1, 3)),
            ValueError,
            "even number",
        ),
        (
            lambda: resnet.ResNet(resnet.BasicBlock, [1, 1], channels_per_layer=[1]),
            ValueError,
            "needs 3",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_own_tests_of_memcnn_pass() -> None:
    """But for those that assert its faults, see `FAULTS` and `memcnn_alias.py`."""
    spec = importlib.util.find_spec("memcnn")
    if spec is None or spec.origin is None:
        pytest.skip("memcnn is not installed: `make golden` installs it")
    tests = Path(spec.origin).parent / "models" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.compat.memcnn_alias"]
    command += ["-c", os.devnull, f"--rootdir={tests}", "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", str(tests)]
    # it wants torchvision, which is not installed
    command += ["--ignore", str(tests / "test_amp.py")]
    command += ["-k", " and ".join(f"not {name}" for name in FAULTS)]
    run = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert "passed" in run.stdout
