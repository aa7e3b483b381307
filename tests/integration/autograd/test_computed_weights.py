"""Weights that are computed: by a hook, by another network, or for a replica.

Such a weight is a plain tensor with a graph, which a module holds in the place of a
parameter. It is an input of the layer like a parameter, and its gradient flows on.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from invtorch import AdditiveCoupling, InvertibleSequential, OrthogonalCoupling
from invtorch.recording import nodes_ignored
from tests.parts import Conditioner
from tests.stacks import both, closed_form_network, gradients_of, parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.weight_norm` is deprecated"
)


def network(anchors: int) -> InvertibleSequential:
    layers = [
        OrthogonalCoupling(Conditioner(2, 2), channels=4)
        if i % 2
        else AdditiveCoupling(Conditioner(2, 2))
        for i in range(10)
    ]
    return InvertibleSequential(*layers, anchors=anchors).double()


def normalized(module: nn.Module, name: str) -> None:
    nn.utils.weight_norm(module, name)


def spectrally_normalized(module: nn.Module, name: str) -> None:
    nn.utils.spectral_norm(module, name)


def pruned(module: nn.Module, name: str) -> None:
    prune.random_unstructured(module, name, 0.5)


@pytest.mark.parametrize("compute", [normalized, spectrally_normalized, pruned])
@pytest.mark.parametrize("on_the_layer", [True, False])
def test_by_a_hook(anchors, compute, on_the_layer) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    for layer in net[1::2]:
        module = layer if on_the_layer else layer.conditioner.first
        compute(module, "vectors" if on_the_layer else "weight")
    initial = copy.deepcopy(net.state_dict())

    def gradients():
        net.load_state_dict(initial)  # spectral normalization counts its calls
        return gradients_of(net, x)()

    found, expected = both(net, gradients)
    assert_all_equal(found, expected)
    assert not any(g is None for g in found)


def test_two_forwards_before_two_backwards(anchors) -> None:
    """Every pass differentiates the weight that was computed for it."""
    net, x = network(anchors), sample(requires_grad=True)
    for layer in net[1::2]:
        nn.utils.weight_norm(layer, "vectors")

    def gradients():
        first, second = weighed(net(x)), weighed(net(2 * x))
        tensors = [x, *parameters(net)]
        return [g for y in (second, first) for g in torch.autograd.grad(y, tensors)]

    assert_all_equal(*both(net, gradients))


def replica_of(module: nn.Module, scale: torch.Tensor) -> nn.Module:
    """Return what `DataParallel` makes for each device, of scaled parameters."""
    replica = module._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, part in module._modules.items():
        replica._modules[name] = replica_of(part, scale)
    for name, parameter in module._parameters.items():
        value = None if parameter is None else scale * parameter
        replica._former_parameters[name] = value
        setattr(replica, name, replica._former_parameters[name])
    return replica


@pytest.mark.parametrize("make", [network, closed_form_network])
def test_in_replicas(anchors, make) -> None:
    net, x = make(anchors), sample(requires_grad=True)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def gradients():
        replicas = [replica_of(net, scale * i) for i in (1, 2)]
        ys = [replica(x) for replica in replicas]
        tensors = [x, scale, *parameters(net)]
        return torch.autograd.grad(sum(map(weighed, ys)), tensors)

    assert_all_equal(*both(net, gradients))


def test_nodes_that_are_not_counted_do_not_matter() -> None:
    with nodes_ignored():
        for _ in range(1000):
            torch.ones(1, requires_grad=True).sin()
    test_in_replicas(0, network)


def test_of_a_replica_set_the_precision() -> None:
    """A replica has no parameters, and its conditioners a precision all the same."""
    net, x = network(0).float(), sample(requires_grad=True)
    net.guard = None
    assert replica_of(net, torch.ones(()))(x).dtype == x.dtype == torch.float64


@pytest.mark.parametrize("make", [network, closed_form_network])
def test_by_another_network(anchors, make) -> None:
    net, x = make(anchors), sample(requires_grad=True)
    code = torch.randn((), dtype=torch.float64, requires_grad=True)

    def gradients():
        own = net.named_parameters(remove_duplicate=False)
        weights = {name: p * torch.cos(code) for name, p in own}
        y = functional_call(net, weights, (x,))
        return torch.autograd.grad(weighed(y), [x, code, *parameters(net)])

    assert_all_equal(*both(net, gradients))


def test_an_attribute_that_a_layer_does_not_read(anchors) -> None:
    """The graph of a pass before, held by an attribute, is left alone."""
    net, x = network(anchors), sample(requires_grad=True)
    for layer in net:
        layer.register_forward_hook(lambda layer, _, y: setattr(layer, "latest", y))

    def gradients():
        for _ in range(2):
            net.zero_grad()
            x.grad = None
            weighed(net(x)).backward()
        return [x.grad, *(p.grad for p in net.parameters())]

    assert_all_equal(*both(net, gradients))


def test_a_leaf_that_is_an_attribute(anchors) -> None:
    net, x = network(anchors), sample(requires_grad=True)
    for layer in net:
        first = layer.conditioner.first
        weight = first.weight.detach().clone().requires_grad_()
        del first.weight
        first.weight = weight
    weights = [layer.conditioner.first.weight for layer in net]

    def gradients():
        return torch.autograd.grad(weighed(net(x)), [x, *weights])

    assert_all_equal(*both(net, gradients))
    net.requires_grad_(False)
    x.requires_grad_(False)
    assert_all_equal(*both(net, lambda: torch.autograd.grad(weighed(net(x)), weights)))
