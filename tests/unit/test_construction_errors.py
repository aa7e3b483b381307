"""What can be seen when a network is built is refused there, and the way out named."""

import pytest
import torch
from torch import nn

from invtorch import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ConditionalAffine,
    Conjugation,
    ElementwiseAffine,
    GatedResidualBlock,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    Join,
    LeakyReLU,
    LeakyTanh,
    LeapfrogStep,
    Logit,
    LU1x1,
    MomentumStep,
    OnPart,
    Orthogonal1x1,
    OrthogonalCoupling,
    OrthogonalDownsample,
    Permute,
    PixelUnshuffle,
    Repeat,
    ResidualFlow,
    ReversibleBlock,
    SplineCoupling,
    Split,
    WithoutContext,
)
from invtorch.flows import (
    ConditionalNormal,
    Dequantize,
    DiagonalNormal,
    Flow,
    StandardNormal,
)
from tests.parts import Conditioner, Scale


def test_a_module_without_inverse() -> None:
    class Forward(InvertibleModule):
        def forward(self, x):
            return x

    for add in (InvertibleSequential, InvertibleSequential().append):
        with pytest.raises(ValueError, match="Forward does not define `inverse`"):
            add(Forward())


@pytest.mark.parametrize("add", ["append", "insert", "assign", "extend", "name"])
def test_an_ordinary_module_in_a_container(add) -> None:
    net = InvertibleSequential(Scale(2))
    with pytest.raises(TypeError, match="Conv2d is not an InvertibleModule"):
        {
            "append": lambda m: net.append(m),
            "insert": lambda m: net.insert(0, m),
            "assign": lambda m: net.__setitem__(0, m),
            "extend": lambda m: net.extend([m]),
            "name": lambda m: setattr(net, "head", m),
        }[add](nn.Conv2d(2, 2, 1))
    assert len(net) == 1


@pytest.mark.parametrize("given", [list, tuple, iter])
def test_modules_in_a_list(given) -> None:
    with pytest.raises(TypeError, match=r"one by one, `InvertibleSequential\(\*"):
        InvertibleSequential(given([Scale(2), Scale(2)]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: Conjugation(m, Scale(2)),
        lambda m: Conjugation(Scale(2), m),
        WithoutContext,
    ],
)
def test_an_ordinary_module_in_another_composition(wrap) -> None:
    with pytest.raises(TypeError, match="Conv2d is not an InvertibleModule"):
        wrap(nn.Conv2d(2, 2, 1))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("memory", "magic", "memory is 'magic'"),
        ("anchors", -1, "anchors is -1"),
        ("anchors", [3, -2], "anchors is -2"),
        ("state_dtype", "float64", "state_dtype is 'float64'"),
        ("state_dtype", torch.int64, "state_dtype is torch.int64"),
    ],
)
def test_unknown_options(option, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        InvertibleSequential(Scale(2), **{option: value})
    with pytest.raises(ValueError, match=message):
        setattr(InvertibleSequential(Scale(2)), option, value)


def test_channels_that_do_not_fit_the_conditioner_when_it_is_built() -> None:
    block = GatedResidualBlock(3, 2, hidden=4)
    with pytest.raises(ValueError, match="takes 3 channels, but is given 4"):
        OrthogonalCoupling(block, channels=8)
    with pytest.raises(ValueError, match=r"returns 2 channels, but .* needs 3"):
        OrthogonalCoupling(block, channels=6)
    with pytest.raises(ValueError, match="takes 2 channels, but is given 4"):
        AdditiveCoupling(nn.Conv2d(2, 4, 1), split=4)
    network = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 1)), nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match="Sequential takes 1 channels, but is given 2"):
        AdditiveCoupling(network, split=2)
    with pytest.raises(ValueError, match=r"returns 3 channels, but .* needs 4"):
        OrthogonalCoupling(nn.Sequential(nn.Conv2d(4, 4, 1), network[1]), channels=8)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda n: GatedResidualBlock(n, 2, hidden=4), "in_channels"),
        (lambda n: GatedResidualBlock(2, n, hidden=4), "out_channels"),
        (lambda n: GatedResidualBlock(2, 2, hidden=n), "hidden"),
        (lambda n: GatedResidualBlock(2, 2, hidden=4, stride=n), "stride"),
        (lambda n: GatedResidualBlock(2, 2, hidden=4, stride=(1, n)), "stride"),
        (lambda n: GatedResidualBlock(2, 2, hidden=4, kernel_size=n), "kernel_size"),
        (lambda n: Householder1x1(n), "channels"),
        (lambda n: Householder1x1(4, n), "reflections"),
        (lambda n: OrthogonalCoupling(Conditioner(2, 2), channels=n), "channels"),
        (lambda n: AdditiveCoupling(Conditioner(2, 2), split=n), "split"),
        (lambda n: AffineCoupling(Conditioner(2, 4), split=n), "split"),
    ],
)
def test_invalid_sizes(make, argument) -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"{argument} is {size}, but must be at"):
            make(size)
    for size in ("4", 2.5):
        with pytest.raises(TypeError, match=f"{argument} is {size!r}, but must be a"):
            make(size)


@pytest.mark.parametrize("anchors", [1.5, [0, 1.5], None])
def test_anchors_that_are_no_whole_numbers(anchors) -> None:
    with pytest.raises(TypeError, match=r"anchors is .*, but must be a whole number"):
        InvertibleSequential(anchors=anchors)


def test_a_function_is_no_conditioner() -> None:
    for layer in (
        lambda f: AdditiveCoupling(f),
        lambda f: AffineCoupling(f, dim=-1),
        lambda f: OrthogonalCoupling(f, channels=4),
    ):
        with pytest.raises(TypeError, match="conditioner is of type builtin_function"):
            layer(torch.tanh)


def test_channels_behind_activations_are_checked_too() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 3, 1), nn.Dropout(), nn.SiLU())
    with pytest.raises(ValueError, match="takes 1 channels, but is given 2"):
        OrthogonalCoupling(network, channels=5)
    network[1] = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 1))
    with pytest.raises(ValueError, match=r"returns 4 channels, but .* needs 3"):
        OrthogonalCoupling(network, channels=5)
    OrthogonalCoupling(nn.Sequential(network, nn.GLU(1)), channels=4)


def test_an_impossible_orthogonal_coupling() -> None:
    with pytest.raises(ValueError, match="channels is 1"):
        OrthogonalCoupling(Conditioner(1, 1), channels=1)
    with pytest.raises(ValueError, match="reflections is 5, but must be between 1 and"):
        OrthogonalCoupling(Conditioner(2, 2), channels=4, reflections=5)


WHOLE = (None, 1.5, float("nan"), "four", True, object())
NUMBERS = (None, "large", (), [0.5], True, torch.tensor(0.5), object())
GENERATORS = (0, "seed", (), object(), torch.tensor(0))
SEQUENCES = (None, 2, 1.5, "4", object(), [2, "two"], [1.5])


def network(outputs: int = 2) -> Conditioner:
    return Conditioner(2, outputs)


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (AdditiveCoupling, "dim", WHOLE),
        (AdditiveCoupling, "grid", (*NUMBERS[1:], 3.0, float("nan"))),
        (AffineCoupling, "bound", NUMBERS[1:]),
        (AffineCoupling, "split", WHOLE[1:]),
        (SplineCoupling, "bins", WHOLE),
        (SplineCoupling, "tail_bound", (*NUMBERS, 0, -1.0, float("inf"))),
        (SplineCoupling, "min_bin_width", (*NUMBERS, 0, 0.2, float("nan"))),
        (SplineCoupling, "bound", NUMBERS),
        (ConditionalAffine, "bound", NUMBERS[1:]),
        (MomentumStep, "gamma", (*NUMBERS, 0, 1, float("nan"))),
        (LeapfrogStep, "step", (*NUMBERS, 0, float("inf"))),
        (Householder1x1, "channels", WHOLE),
        (Householder1x1, "reflections", WHOLE),
        (Orthogonal1x1, "channels", WHOLE),
        (Orthogonal1x1, "generator", GENERATORS),
        (LU1x1, "channels", WHOLE),
        (LU1x1, "generator", GENERATORS),
        (Permute, "channels", WHOLE),
        (Permute, "generator", GENERATORS),
        (Permute, "order", (None, 3, {}, object(), [0, 0], [0.0, 1.0, 2.0], "odd")),
        (Permute, "order", ([True, False, 2], ["a", "b", "c"], torch.arange(4))),
        (ActNorm, "channels", (*WHOLE, (2,), ())),
        (ElementwiseAffine, "shape", (*WHOLE, (), [0], [2, True])),
        (PixelUnshuffle, "stride", (*WHOLE, (), [1.5])),
        (PixelUnshuffle, "size", WHOLE[1:]),
        (OrthogonalDownsample, "channels", WHOLE),
        (OrthogonalDownsample, "generator", GENERATORS),
        (Split, "dim", (*WHOLE, 0)),
        (Join, "dim", (*WHOLE, 0)),
        (Split, "sizes", WHOLE[1:]),
        (LeakyReLU, "negative_slope", (*NUMBERS, 0, -1.0)),
        (LeakyTanh, "bound", (*NUMBERS, 1, float("inf"))),
        (Logit, "alpha", (*NUMBERS, -0.1, 0.5)),
        (ResidualFlow, "coefficient", (*NUMBERS[1:], 0, 1)),
        (ResidualFlow, "tolerance", (*NUMBERS[1:], 0)),
        (ResidualFlow, "iterations", WHOLE),
        (OnPart, "index", (*WHOLE, -1)),
        (Repeat, "times", (*WHOLE, 0)),
        (GatedResidualBlock, "dims", (*WHOLE, [], 4)),
        (GatedResidualBlock, "hidden", WHOLE),
        (StandardNormal, "shape", (*SEQUENCES, [], [0], [[]])),
        (DiagonalNormal, "shape", (*SEQUENCES, [-1])),
        (ConditionalNormal, "shape", SEQUENCES),
        (Flow, "dequantize", (256, "uniform", nn.Identity())),
        (Dequantize, "levels", (*WHOLE, 1)),
    ],
)
def test_an_argument_of_another_kind_is_named(make, name, values) -> None:
    others = {
        AdditiveCoupling: {"conditioner": network()},
        AffineCoupling: {"conditioner": network(4)},
        SplineCoupling: {"conditioner": network(46)},
        ConditionalAffine: {"conditioner": network(4)},
        MomentumStep: {"f": network()},
        LeapfrogStep: {"f": network()},
        Householder1x1: {"channels": 3},
        LU1x1: {"channels": 3},
        Orthogonal1x1: {"channels": 3},
        Permute: {"channels": 3},
        OrthogonalDownsample: {"channels": 3},
        OnPart: {"module": Scale(2)},
        Repeat: {"module": Scale(2)},
        GatedResidualBlock: {"in_channels": 2, "out_channels": 2, "hidden": 2},
        ConditionalNormal: {"network": network()},
        Flow: {"transform": Scale(2), "base": StandardNormal([2])},
    }
    for value in values:
        given = others.get(make, {})
        if make is ResidualFlow:
            given = {"residual": nn.Linear(2, 2)}
        with pytest.raises((TypeError, ValueError), match=rf"^{name}.* (is|has) "):
            make(**{**given, name: value})


class Returns(nn.Module):
    """A network that returns what is no tensor."""

    def __init__(self, value) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_):
        return self.value


@pytest.mark.parametrize("value", [None, (torch.zeros(1, 2),), [1.0], 0.0])
@pytest.mark.parametrize(
    "make",
    [
        AdditiveCoupling,
        AffineCoupling,
        SplineCoupling,
        ConditionalAffine,
        lambda network: ReversibleBlock(network, network),
        lambda network: OrthogonalCoupling(network, channels=4),
        lambda network: ResidualFlow(network, coefficient=None),
        lambda network: AffineCoupling(Conditioner(2, 4, 0), scale=network),
        lambda network: ConditionalAffine(nn.Linear(4, 8), scale=network),
    ],
)
def test_a_network_that_returns_no_tensor_is_named(make, value) -> None:
    message = rf"Returns returned a {type(value).__name__}, but must return one tensor"
    with pytest.raises(TypeError, match=message):
        make(Returns(value))(torch.zeros(1, 4), torch.zeros(1, 4))
