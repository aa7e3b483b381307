"""Modules of FrEIA 0.2 in our containers, and ours in its graphs, where it is there."""

import warnings

import pytest
import torch
from torch import nn

from invtorch import AffineCoupling, Householder1x1, InvertibleSequential, Split
from invtorch.compat.freia import FromFreia, ToFreia
from invtorch.testing import (
    assert_gradients_match,
    assert_invertible,
    assert_log_det,
    assert_memory_flat,
)
from tests.parts import Conditioner
from tests.tolerances import assert_equal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its older Python
    fm = pytest.importorskip("FrEIA.modules", reason="FrEIA is not installed")
    ff = pytest.importorskip("FrEIA.framework")

# the hook of OrthogonalTransform is of a deprecated kind
pytestmark = pytest.mark.filterwarnings("ignore:Using non-full backward hooks")
VECTOR, IMAGE = [(6,)], [(4, 4, 4)]


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dense(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


def convolutions(inputs: int, outputs: int) -> nn.Module:
    first, last = (nn.Conv2d(*io, 3, padding=1) for io in ((inputs, 5), (5, outputs)))
    return nn.Sequential(first, nn.Tanh(), last)


def initialized(module: nn.Module) -> nn.Module:
    module([3 * torch.randn(9, *IMAGE[0]) + 1])
    return module


def sequence(*kinds, **options) -> nn.Module:
    net = ff.SequenceINN(6, **options)
    for kind, arguments in kinds:
        net.append(kind, **arguments)
    return net


def graph(force: bool) -> nn.Module:
    nodes = [ff.InputNode(6)]
    nodes.append(ff.Node(nodes[-1], fm.Split, {}))
    first, second = nodes[-1].out0, nodes[-1].out1
    nodes.append(ff.Node(first, fm.InvAutoAct, {}))
    nodes.append(ff.Node([nodes[-1].out0, second], fm.Concat, {}))
    nodes.append(ff.Node(nodes[-1], fm.LearnedElementwiseScaling, {}))
    block = {"subnet_constructor": dense}
    nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, block))
    nodes.append(ff.OutputNode(nodes[-1]))
    return ff.GraphINN(nodes, force_tuple_output=force)


def orthogonal() -> nn.Module:
    module = fm.OrthogonalTransform(VECTOR)
    module.weights.data = torch.linalg.qr(module.weights.data).Q
    return module


BLOCKS = ("GLOWCouplingBlock", "RNVPCouplingBlock", "NICECouplingBlock")
BLOCKS = (*BLOCKS, "GINCouplingBlock", "AffineCouplingOneSided", "AllInOneBlock")
KINDS = {
    **{name: (name, VECTOR, {"subnet_constructor": dense}) for name in BLOCKS},
    **{f"{n}, 2-D": (n, IMAGE, {"subnet_constructor": convolutions}) for n in BLOCKS},
    "soft": ("AllInOneBlock", VECTOR, {"permute_soft": True}),
    "gin": ("AllInOneBlock", IMAGE, {"gin_block": True}),
    "reverse": ("AllInOneBlock", VECTOR, {"reverse_permutation": True}),
    "householder": ("HouseholderPerm", VECTOR, {"n_reflections": 2}),
    "permute": ("PermuteRandom", VECTOR, {}),
    "linear": ("FixedLinearTransform", VECTOR, {"M": (torch.eye(6) + 0.1).double()}),
    "1x1": ("Fixed1x1Conv", IMAGE, {"M": (torch.eye(4) + 0.1).double()}),
    "sigmoid": ("InvertibleSigmoid", VECTOR, {}),
    "sigmoid, 2-D": ("InvertibleSigmoid", IMAGE, {}),
    "scaling": ("LearnedElementwiseScaling", IMAGE, {}),
    "auto": ("InvAutoAct", IMAGE, {}),
    "auto, two-sided": ("InvAutoActTwoSided", IMAGE, {}),
    "down": ("IRevNetDownsampling", IMAGE, {}),
    "down, legacy": ("IRevNetDownsampling", IMAGE, {"legacy_backend": True}),
    "up": ("IRevNetUpsampling", IMAGE, {}),
    "haar": ("HaarDownsampling", IMAGE, {"rebalance": 0.5}),
    "haar, ordered": ("HaarDownsampling", IMAGE, {"order_by_wavelet": True}),
    "haar, up": ("HaarUpsampling", IMAGE, {"rebalance": 0.5}),
    "flatten": ("Flatten", IMAGE, {}),
    "reshape": ("Reshape", IMAGE, {"output_dims": (8, 2, 4)}),
    "split": ("Split", IMAGE, {}),
}
MADE = {
    "actnorm": (lambda: initialized(fm.ActNorm(IMAGE)), IMAGE),
    "orthogonal": (orthogonal, VECTOR),
    "sequence": (
        lambda: sequence(
            (fm.AllInOneBlock, {"subnet_constructor": dense}),
            (fm.LearnedElementwiseScaling, {}),
            (fm.InvAutoAct, {}),
        ),
        VECTOR,
    ),
    "sequence, tuple": (
        lambda: sequence((fm.InvAutoAct, {}), force_tuple_output=True),
        VECTOR,
    ),
    "graph": (lambda: graph(False), VECTOR),
    "graph, tuple": (lambda: graph(True), VECTOR),
}


def make(name: str):
    """Return a module of FrEIA whose parameters have no special value, and a batch."""
    if name in MADE:
        maker, dims = MADE[name]
        module = maker()
    else:
        kind, dims, options = KINDS[name]
        if kind == "AllInOneBlock":
            options = {"subnet_constructor": dense, **options}
            if dims == IMAGE:
                options["subnet_constructor"] = convolutions
        module = getattr(fm, kind)(dims, **options)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.requires_grad and name != "orthogonal" and "Vs" not in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double(), torch.randn(3, *dims[0])


@pytest.mark.parametrize("name", sorted({**KINDS, **MADE}))
def test_a_module_obeys_the_laws(name) -> None:
    module, x = make(name)
    layer = FromFreia(module)
    # fixed matrices are stored in single precision by some, and so are their inverses
    rtol = 1e-5 if name in ("soft", "AllInOneBlock", "AllInOneBlock, 2-D") else None
    assert_invertible(layer, x, rtol=rtol)
    assert_log_det(layer, x, rtol=rtol)
    assert_gradients_match(layer, x, rtol=rtol)


def test_memory_is_flat() -> None:
    block = fm.GLOWCouplingBlock([(6, 8, 8)], subnet_constructor=convolutions)
    assert_memory_flat(FromFreia(block.double()), torch.randn(2, 6, 8, 8))


def test_conditions() -> None:
    options = {"subnet_constructor": dense}
    block = fm.GLOWCouplingBlock(VECTOR, [(2,), (3,)], **options)
    net = sequence((fm.GLOWCouplingBlock, {"cond": 0, "cond_shape": (2,), **options}))
    x, a, b = torch.randn(4, 6), torch.randn(4, 2), torch.randn(4, 3)
    for module, context in ((block, [a, b]), (net, [a])):
        layer = FromFreia(module)
        y, log_det = module(x if module is net else [x], c=context)
        assert_equal(layer(x, *context), y if module is net else y[0])
        assert_equal(layer.forward_and_log_det(x, *context)[1], log_det)
        assert_gradients_match(layer, x, *context)
    with pytest.raises(ValueError, match="has 2 conditions, but gets 1"):
        FromFreia(block)(x, a)
    with pytest.raises(ValueError, match="has 1 conditions, but gets 0"):
        FromFreia(net)(x)


def unsummed() -> nn.Module:
    net = ff.SequenceINN(*IMAGE[0])
    net.append(fm.InvertibleSigmoid)
    net.append(fm.InvAutoAct)
    return net


REFUSED = {
    "not initialized": (lambda: fm.ActNorm(VECTOR), "sets its parameters"),
    "inverse of autoencoders": (lambda: fm.InvAutoFC(VECTOR), "LU1x1"),
    "convolution of autoencoders": (lambda: fm.InvAutoConv2D(IMAGE), "ResidualFlow"),
    "i-ResNet": (lambda: fm.IResNetLayer(VECTOR), "ResidualFlow"),
    "sigmoid inside": (unsummed, "does not sum"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_be_wrong_is_refused_by_name(name, capsys) -> None:
    maker, message = REFUSED[name]
    module = maker()
    with pytest.raises((ValueError, RuntimeError), match=message):
        FromFreia(module)(torch.randn(3, 6))
    capsys.readouterr()  # some print their shapes


def test_a_matrix_that_is_no_longer_orthogonal_is_refused() -> None:
    module = orthogonal()
    layer = FromFreia(module)
    layer(torch.randn(3, 6))
    with torch.no_grad():
        module.weights.mul_(1.01)
    with pytest.raises(RuntimeError, match="Orthogonal1x1"):
        layer(torch.randn(3, 6))


def test_odd_sizes_are_refused() -> None:
    layer = FromFreia(fm.HaarDownsampling([(1, 4, 4)]))
    with pytest.raises(RuntimeError, match="drops some"):
        layer(torch.randn(1, 1, 5, 5))


def test_haar_leaves_its_input_as_it_is() -> None:
    layer = FromFreia(fm.HaarDownsampling(IMAGE).double())
    z = torch.randn(2, 16, 2, 2)
    before = z.clone()
    layer.inverse(z)
    assert torch.equal(z, before)


def net(channels: int) -> InvertibleSequential:
    conditioner = Conditioner(channels // 2, channels, 0)
    return InvertibleSequential(
        Householder1x1(channels, 2), AffineCoupling(conditioner, bound=1.5)
    ).double()


@pytest.mark.parametrize("rev", [False, True])
@pytest.mark.parametrize("jac", [False, True])
def test_our_modules_in_a_graph(rev, jac) -> None:
    ours, half = net(4), net(2)
    condition = ff.ConditionNode(1)
    nodes = [condition, ff.InputNode(4)]
    nodes.append(ff.Node(nodes[-1], ToFreia, {"module": ours}, conditions=condition))
    nodes.append(ff.Node(nodes[-1], ToFreia, {"module": Split(2)}))
    first, second = nodes[-1].out0, nodes[-1].out1
    nodes.append(ff.Node(first, ToFreia, {"module": half}))
    nodes += [ff.OutputNode(nodes[-1]), ff.OutputNode(second)]
    inn = ff.GraphINN(nodes)
    x, c = torch.randn(3, 4), torch.randn(3, 1)
    middle, log_det = ours.forward_and_log_det(x, c)
    last, more = half.forward_and_log_det(middle[:, :2])
    z = (last, middle[:, 2:])
    given, expected, total = (
        (z, (x,), -(log_det + more)) if rev else (x, z, log_det + more)
    )
    result, jacobian = inn(given, c=[c], rev=rev, jac=jac)
    for a, b in zip((result,) if rev else result, expected, strict=True):
        assert_equal(a, b)
    if jac:
        assert_equal(jacobian, total)
    assert len(list(inn.parameters())) == len([*ours.parameters(), *half.parameters()])


def test_our_modules_in_a_sequence() -> None:
    nets = [net(6) for _ in range(3)]
    inn = ff.SequenceINN(6)
    for module in nets:
        inn.append(ToFreia, module=module)
        inn.append(fm.PermuteRandom)
    x = torch.randn(3, 6)
    z, log_det = inn(x)
    assert_equal(inn(z, rev=True)[0], x)
    assert_equal(inn(z, rev=True)[1], -log_det)
    jacobian = torch.autograd.functional.jacobian(lambda x: inn(x)[0], x[:1])
    assert_equal(log_det[:1], torch.linalg.slogdet(jacobian.view(1, 6, 6)).logabsdet)
    assert torch.isnan(torch.as_tensor(inn(x, jac=False)[1]))
