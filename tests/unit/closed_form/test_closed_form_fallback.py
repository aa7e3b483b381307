"""What may compute something else than a layer is known for is left to autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    InvertibleSequential,
    OrthogonalCoupling,
)
from tests.stacks import both, chained, closed_form_network, gradients_of, sample
from tests.tolerances import assert_all_equal


class Twice(nn.Module):
    """A parametrization that doubles."""

    def forward(self, weight):
        return 2 * weight


class Noise(nn.Module):
    """A parametrization that draws."""

    def forward(self, weight):
        return weight + torch.rand_like(weight)


class Derived(GatedResidualBlock):
    """A block that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def hooked(net):
    net[2].conditioner.register_forward_hook(lambda *call: 2 * call[-1])


def hooked_inside(net):
    net[3].conditioner.look.register_forward_pre_hook(lambda _, x: (x[0] * 2,))


def hooked_backward(net):
    net[3].conditioner.spread.register_full_backward_hook(
        lambda _, gradient, __: tuple(g and None if g is None else g for g in gradient)
    )


def patched(net):
    look = net[2].conditioner.look
    original = look.forward
    look.forward = lambda h: 2 * original(h)


def derived(net):
    net[2].conditioner = Derived(2, 2, hidden=3, stride=2).double()


def other_padding(net):
    net[2].conditioner.look.padding_mode = "circular"


def doubly_parametrized(net):
    parametrize.register_parametrization(net[2].conditioner.look, "weight", Twice())


def parametrized_bias(net):
    parametrize.register_parametrization(net[3].conditioner.gather, "bias", Twice())


def parametrized_layer(net):
    orthogonal(net[2], "vectors")


def writing(net):
    convolutions = [nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)]
    net[2].conditioner = nn.Sequential(*convolutions).double()


def in_other_precision(net):
    net[2].float()


def compiled(net):
    net[2].conditioner.compile(backend="eager")


def drawing(net):
    parametrize.register_parametrization(net[3].conditioner.gather, "bias", Noise())


def exchanged(net):
    net[3].conditioner.gather = nn.Sequential(net[3].conditioner.gather)


def convolving_otherwise(net):
    look = net[2].conditioner.look
    original = look._conv_forward
    look._conv_forward = lambda *arguments: 2 * original(*arguments)


def padded_by_a_number(net):
    net[2].conditioner.look.padding = 1


def normalized_buffers(net):
    look = nn.Conv2d(2, 2, 1, bias=False)
    weight = look.weight.detach()
    del look.weight
    look.register_buffer("weight", weight)
    net[2].conditioner = nn.Sequential(weight_norm(look)).double()


def shadowed(net):
    look = net[2].conditioner.look
    vars(look)["bias"] = 2 * look.bias.detach()


OTHERS = [
    *(hooked, hooked_inside, hooked_backward, patched, derived, other_padding),
    *(doubly_parametrized, parametrized_bias, parametrized_layer, writing),
    *(in_other_precision, compiled, drawing, exchanged, convolving_otherwise),
    *(padded_by_a_number, normalized_buffers, shadowed),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("change", OTHERS)
def test_modified_modules_are_left_to_autograd(anchors, recorded_calls, change) -> None:
    net, x = closed_form_network(anchors), sample(requires_grad=True)
    change(net)
    found, expected = both(net, gradients_of(net, x))
    assert_all_equal(found, expected)
    assert recorded_calls.count(None) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions_are_left_to_autograd(recorded_calls, dtype) -> None:
    net, x = closed_form_network(0).to(dtype), sample(requires_grad=True).to(dtype)
    net.memory = "checkpoint"
    net(x)
    assert len(recorded_calls) == len(net)
    assert not any(recorded_calls)


def test_autocast_is_left_to_autograd(recorded_calls) -> None:
    net, x = closed_form_network(0).float(), sample(requires_grad=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
    assert len(recorded_calls) == len(net)
    assert not any(recorded_calls)


def test_a_global_hook_is_called(recorded_calls) -> None:
    net, x = closed_form_network(0), sample(requires_grad=True)
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: called.append(module)
    )
    with handle:
        net(x)
    assert not any(recorded_calls)
    assert {layer.conditioner.look for layer in net} <= {*called}


def test_classes_whose_methods_were_exchanged(recorded_calls, monkeypatch) -> None:
    net, x = closed_form_network(0), sample(requires_grad=True)
    original = GatedResidualBlock.forward
    monkeypatch.setattr(GatedResidualBlock, "forward", lambda *a: 2 * original(*a))
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert not any(recorded_calls)
    net, convolve = closed_form_network(0, chained), nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *a: 2 * convolve(*a))
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert not any(recorded_calls)


class Doubled(TorchFunctionMode):
    """Lets convolutions return twice what they do."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        return 2 * found if function is F.conv2d else found


class Counted(TorchDispatchMode):
    """Counts the operations below autograd."""

    operations = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.operations += 1
        return function(*arguments, **(options or {}))


def test_a_mode_that_sees_every_operation(recorded_calls) -> None:
    net, x = closed_form_network(0, chained), sample(requires_grad=True)
    with Counted() as counted:
        found, expected = both(net, gradients_of(net, x))
    assert_all_equal(found, expected)
    assert not any(recorded_calls)
    assert counted.operations


def test_a_function_mode_that_changes_results_is_detected(recorded_calls) -> None:
    net, x = closed_form_network(0, chained), sample(requires_grad=True)
    with Doubled():  # PyTorch leaves it in a backward pass
        y = net(x)
    with pytest.raises(RuntimeError):
        y.sum().backward()
    assert not any(recorded_calls)


@pytest.mark.filterwarnings("ignore:Anomaly|Error detected:UserWarning")
def test_anomaly_detection_names_the_layer() -> None:
    net, x = closed_form_network(0), sample(requires_grad=True)
    net.guard = None
    with torch.no_grad():
        net[3].conditioner.look.bias.fill_(torch.nan)
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.raises(RuntimeError, match="returned nan values") as caught,
    ):
        net(x).sum().backward()
    assert "in layer" in str(caught.value.__notes__)


def test_a_state_without_channels_is_refused() -> None:
    net = InvertibleSequential(OrthogonalCoupling(nn.Linear(2, 2), channels=4))
    with pytest.raises(ValueError, match="does not have the 4 channels") as caught:
        net(torch.randn(4, requires_grad=True))
    assert "layer 0 (OrthogonalCoupling)" in str(caught.value.__notes__)


@pytest.mark.parametrize("shape", [(1, 2), (3, 2), (3, 1)])
def test_a_bias_of_an_affine_map_that_spreads(anchors, shape) -> None:
    layers = [AdditiveCoupling(nn.Linear(2, 2)) for _ in range(10)]
    for layer in layers:
        layer.conditioner.bias = nn.Parameter(torch.randn(shape))
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert_all_equal(*both(net, gradients_of(net, x)))
