"""`OnPart`, `Parallel` and `Repeat` are compositions, layer by layer."""

import pytest
import torch

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleSequential,
    OnPart,
    Parallel,
    Permute,
    Repeat,
)
from invtorch.planning import measure_memory
from tests.parts import Conditioner
from tests.tolerances import assert_equal


def coupling() -> AdditiveCoupling:
    return AdditiveCoupling(Conditioner(2, 2, 0))


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4), torch.randn(2, 4)


def test_each_tensor_gets_its_module() -> None:
    f, g, (x1, x2) = coupling(), Householder1x1(4), pair()
    y1, y2 = Parallel(f, g)((x1, x2))
    assert torch.equal(y1, f(x1))
    assert torch.equal(y2, g(x2))
    y1, y2 = OnPart(f, 1)((x1, x2))
    assert torch.equal(y1, x1)
    assert torch.equal(y2, f(x2))
    assert torch.equal(Repeat(f, 3)(x1), f(f(f(x1))))


def test_each_layer_inside_is_a_layer_of_the_container() -> None:
    inner = InvertibleSequential(coupling(), coupling())
    assert OnPart(inner, 0)._layers == 2
    inner.append(coupling())
    layer = OnPart(inner, 0)
    inner.append(coupling())
    assert layer._layers == 4
    x = pair()
    assert torch.equal(layer(x)[0], inner(x[0]))
    assert Parallel(inner, None, inner)._layers == 8
    assert Repeat(inner, 3)._layers == 12


def test_parameters_and_keys_are_those_of_the_module() -> None:
    f = coupling()
    assert {*OnPart(f, 0).parameters()} == {*f.parameters()}
    keys = {f"module.{key}" for key in f.state_dict()}
    assert {*OnPart(f, 0).state_dict()} == keys


@pytest.mark.usefixtures("on_the_cpu")
def test_memory_does_not_depend_on_the_layers_inside() -> None:
    def live(depth: int) -> int:
        inner = InvertibleSequential(*[coupling() for _ in range(depth)])
        net, x = InvertibleSequential(OnPart(inner, 1), anchors=0), pair()
        return measure_memory(lambda: net(x)).live

    assert live(4) == live(32)


def test_one_evaluation_in_backward() -> None:
    layers = [coupling() for _ in range(4)]
    net = InvertibleSequential(
        OnPart(InvertibleSequential(*layers[:2]), 1),
        Parallel(layers[2], layers[3].inv),
        anchors=0,
    )
    y1, y2 = net(pair())
    (y1.sum() + y2.sum()).backward()
    assert [layer.conditioner.evaluations for layer in layers] == [2] * 4


def test_the_memory_of_a_layer_inside_counts() -> None:
    layer = coupling()
    net = InvertibleSequential(OnPart(layer, 0), anchors=0)
    layer.memory = "store"
    net(pair())[0].sum().backward()
    assert layer.conditioner.evaluations == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OnPart(Permute(2), -1), ValueError, "index is -1, but must be at"),
        (lambda: OnPart(torch.nn.Linear(2, 2), 0), TypeError, "Linear is not an Inv"),
        (lambda: Parallel(), ValueError, "Parallel got no module"),
        (lambda: Parallel(None), ValueError, "Parallel got no module"),
        (lambda: Parallel(3), TypeError, "int is not an InvertibleModule"),
        (lambda: Repeat(Permute(2), 0), ValueError, "times is 0, but must be at least"),
    ],
)
def test_arguments_that_cannot_be(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_states_that_do_not_fit() -> None:
    x = torch.zeros(2, 4)
    for layer in (OnPart(Permute(4), 2), Parallel(None, Permute(4))):
        with pytest.raises(TypeError, match="is a tuple of tensors, but got Tensor"):
            layer(x)
    with pytest.raises(ValueError, match="index is 2, but the state has 2 tensors"):
        OnPart(Permute(4), 2)((x, x))
    with pytest.raises(ValueError, match="has 2 branches, but the state has 3 tensors"):
        Parallel(None, Permute(4)).inverse((x, x, x))
    assert_equal(Parallel(None, Permute(4, "reverse"))((x, x))[1], x, least=1.0)
