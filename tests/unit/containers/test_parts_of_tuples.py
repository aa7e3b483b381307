"""`OnPart`, `Parallel` and `Repeat` are compositions, layer by layer."""

import gc
from contextlib import suppress
from weakref import ref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import (
    AdditiveCoupling,
    Conjugation,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    Join,
    MomentumStep,
    OnPart,
    Parallel,
    Permute,
    Repeat,
    Split,
    WithoutContext,
)
from invtorch.planning import measure_memory
from tests.parts import Conditioner
from tests.strategies import network_seeds
from tests.tolerances import assert_all_equal, assert_equal


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


class Doubled(InvertibleSequential):
    """A container with directions of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        return super().inverse(y / 2)


COMPOSITES = {
    "container": lambda: InvertibleSequential(coupling(), coupling().inv),
    "subclass": lambda: Doubled(coupling(), coupling()),
    "subclass, inverted": lambda: Doubled(coupling(), coupling()).inv,
    "without context": lambda: WithoutContext(coupling()),
    "repeated": lambda: Repeat(coupling(), 2),
    "conjugation": lambda: Conjugation(Householder1x1(4), coupling()),
    "inverse": lambda: coupling().inv,
    "deep": lambda: InvertibleSequential(WithoutContext(Doubled(coupling()))),
}


def forward_hook(module: torch.nn.Module, calls: list[int]) -> None:
    def hook(_: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output + 0.5

    module.register_forward_hook(hook)


def pre_hook(module: torch.nn.Module, calls: list[int]) -> None:
    def hook(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        calls.append(1)
        return (inputs[0] * 1.5,)

    module.register_forward_pre_hook(hook)


def silent_hook(module: torch.nn.Module, calls: list[int]) -> None:
    module.register_forward_hook(lambda *_: calls.append(1))


def backward_hook(module: torch.nn.Module, calls: list[int]) -> None:
    def hook(_: object, grads: tuple[torch.Tensor], __: object) -> tuple[torch.Tensor]:
        calls.append(1)
        return (grads[0] * 3,)

    module.register_full_backward_hook(hook)


HOOKS = [forward_hook, pre_hook, silent_hook, backward_hook, None]


@given(
    st.sampled_from(sorted(COMPOSITES)),
    st.sampled_from(HOOKS),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["invert", "checkpoint", "store", "auto"]),
    network_seeds,
)
def test_the_module_is_called_as_it_is(name, hook, deep, branch, memory, seed) -> None:
    """Its hooks and its own directions take effect, or the pass is refused."""
    torch.manual_seed(seed)
    module, x = COMPOSITES[name](), pair()
    composites = [m for m in module.modules() if not isinstance(m, AdditiveCoupling)]
    inner = [m for m in composites if isinstance(m, InvertibleModule)]
    calls: list[int] = []
    if hook:
        hook(inner[-1 if deep else 0], calls)
    layer = Parallel(None, module) if branch else OnPart(module, 1)
    leaves = tuple(t.double().requires_grad_() for t in x)
    layer.double()
    containers = [m for m in module.modules() if isinstance(m, InvertibleSequential)]
    for container in containers:
        container.memory = "store"
    expected = module(leaves[1])
    for container in containers:
        container.memory = "invert"
    called, own = len(calls), [*module.parameters()]
    grads = torch.autograd.grad(expected.sin().sum(), [leaves[1], *own])
    with suppress(RuntimeError):  # a hook that changes the state between two layers
        assert_equal(layer(leaves)[1], expected)
        assert len(calls) >= 2 * called
    budget = {"budget": 10**6} if memory == "auto" else {}
    net = InvertibleSequential(layer, memory=memory, **budget)
    with suppress(RuntimeError):
        y = net(leaves)[1]
        assert_equal(y, expected)
        found = torch.autograd.grad(y.sin().sum(), [leaves[1], *own])
        assert_all_equal(found, grads)


def half() -> AdditiveCoupling:
    return AdditiveCoupling(Conditioner(1, 1, 0))


def in_two() -> InvertibleSequential:
    return InvertibleSequential(Split(), OnPart(half(), 1))


INSIDE = {
    "coupling": coupling,
    "split and joined": lambda: InvertibleSequential(
        Split(), MomentumStep(Conditioner(2, 2, 0)), OnPart(half(), 0), Join()
    ),
    "inverted": lambda: InvertibleSequential(
        Join().inv, Parallel(half(), None), Split().inv
    ),
    "in a basis": lambda: Conjugation(Split(), Parallel(half(), half().inv)),
    "unbalanced": lambda: InvertibleSequential(in_two(), in_two().inv),
}


@given(
    st.lists(st.sampled_from(sorted(INSIDE)), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["forward", "inverse", "forward_and_log_det"]),
    st.sampled_from(["invert", "checkpoint", "store", "auto"]),
    st.integers(0, 2),
    network_seeds,
)
def test_a_module_inside_may_split_its_tensor(
    names, deep, around, direction, memory, anchors, seed
) -> None:
    torch.manual_seed(seed)
    module = InvertibleSequential(*[INSIDE[name]() for name in names])
    layer = OnPart(InvertibleSequential(module) if deep else module, 1)
    if around:
        layer = InvertibleSequential(Parallel(None, coupling()), layer)
    leaves = tuple(t.double().requires_grad_() for t in pair())
    wanted = [leaves[1], *layer.double().parameters()]
    budget = {"budget": 10**6} if memory == "auto" else {}
    found = []
    for how in ("store", memory):
        options = budget if how == "auto" else {}
        net = InvertibleSequential(layer, memory=how, anchors=anchors, **options)
        y = getattr(net, direction)(leaves)
        y, log_det = y if direction.endswith("det") else (y, y[1].flatten(1).sum(1))
        loss = y[1].sin().sum() + log_det.square().sum()
        found.append((y[1], *torch.autograd.grad(loss, wanted)))
    assert_all_equal(found[1], found[0])
    if not around:
        assert_equal(getattr(module, direction.split("_")[0])(leaves[1]), found[0][0])


def test_a_module_inside_returns_one_tensor() -> None:
    with pytest.raises(TypeError, match=r"Split returned a tuple .* join its parts"):
        OnPart(Split(), 0)(pair())


def test_the_memory_of_a_container_inside_counts() -> None:
    for memory, evaluations in {"store": 1, "checkpoint": 2, "auto": 2}.items():
        layer = coupling()
        inner = InvertibleSequential(layer, memory=memory)
        for around in (inner, WithoutContext(inner)):
            layer.conditioner.calls.clear()
            InvertibleSequential(OnPart(around, 0))(pair())[0].sum().backward()
            assert layer.conditioner.evaluations == evaluations


def test_modules_that_were_removed_are_freed() -> None:
    inner = InvertibleSequential(coupling(), coupling())
    layer, x = OnPart(inner, 0), pair()
    removed = ref(inner[0])
    layer(x)
    inner[0] = coupling()
    layer(x)
    gc.collect()
    assert removed() is None


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
