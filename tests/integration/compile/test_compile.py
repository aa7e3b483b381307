"""Under `torch.compile` gradients stay right and memory saved."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    ReversibleBlock,
    WithoutContext,
    precision,
)
from invtorch.engine.compiled import checks
from tests.compilation import COMPILING, compiled
from tests.devices import DEVICE, ON_THE_CPU
from tests.parts import Conditioner, Leapfrog, Scale
from tests.stacks import couplings, parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal, relative_error

pytestmark = [*COMPILING, pytest.mark.slow]


@pytest.fixture(params=[0, 2], ids=["inversion", "2 anchors"])
def anchors(request) -> int:
    """Return fewer anchors than there are layers: a graph of many takes long."""
    return request.param


def assert_right_when_compiled(net, function, inputs, **options) -> None:
    """Compare a compiled function of a network with its plain form in eager mode."""
    net.memory = "store"
    expected = torch.autograd.grad(function(), inputs, allow_unused=True)
    net.memory = "invert"
    found = torch.autograd.grad(
        compiled(function, **options)(), inputs, allow_unused=True
    )
    assert_all_equal(found, expected)


@pytest.mark.parametrize(("direction", "anchors"), [("forward", 2), ("inverse", 0)])
def test_a_compiled_container_in_one_graph(direction, anchors) -> None:
    net, x = stack(anchors, depth=4), sample(requires_grad=True)

    def loss():
        return weighed(getattr(net, direction)(torch.sin(x)) * 2)

    assert_right_when_compiled(net, loss, [x, *parameters(net)])


def test_more_layers_than_the_default_has_anchors() -> None:
    layers = [*stack(anchors=0, depth=4), *(Scale(4) for _ in range(6))]
    net = InvertibleSequential(*layers[::2], *layers[1::2], anchors=8).double()
    x = sample(requires_grad=True)
    assert_right_when_compiled(net, lambda: weighed(net(x)), [x, *parameters(net)])


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_inductor() -> None:
    net, x = stack(1, depth=2), sample(requires_grad=True)
    inputs = [x, *parameters(net)]
    assert_right_when_compiled(net, lambda: weighed(net(x)), inputs, backend="inductor")


def test_nested_containers_shared_blocks_and_contexts() -> None:
    a, b, c = (stack(0, depth=depth) for depth in (2, 2, 1))
    net = InvertibleSequential(*a, b, WithoutContext(c), a[1], b[0].inv, anchors=1)
    x, context = sample(requires_grad=True), sample(1, requires_grad=True)

    def loss():
        return weighed(net(x, context, context) * context)

    assert_right_when_compiled(net, loss, [x, context, *parameters(net)])


def test_tuple_states(anchors) -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(3)], anchors=anchors)
    net.double()
    q, p = sample(2, requires_grad=True), sample(2, requires_grad=True)

    def loss():
        a, b = net((q, p))
        return weighed(a) + weighed(b * a)

    assert_right_when_compiled(net, loss, [q, p, *parameters(net)])


class Scaled(InvertibleModule):
    """A layer whose state is a tuple of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, state, *_):
        (x,) = state
        return (x * self.log_scale.exp(),)

    def inverse(self, state, *_):
        (y,) = state
        return (y * (-self.log_scale).exp(),)


def test_a_state_that_is_a_tuple_of_one_tensor() -> None:
    net = InvertibleSequential(Scaled(), Scaled(), anchors=0).double()
    x = sample(requires_grad=True)
    assert_right_when_compiled(net, lambda: weighed(net((x,))), [x, *parameters(net)])


def test_frozen_parameters_and_an_input_without_gradient(anchors) -> None:
    net, x = stack(anchors, depth=3), sample()
    net[2].requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    assert_right_when_compiled(net, lambda: weighed(net(x)), trained)


class Looked(nn.Module):
    """A conditioner that looks its context up, and has buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = Conditioner(2, 2), nn.Embedding(3, 2)
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("power", torch.tensor(2))
        self.register_buffer("mask", torch.tensor([[[True]], [[False]]]))

    def forward(self, x, index):
        scale = torch.where(self.mask, self.scale, self.power)
        return self.inner(x) * scale * self.table(index)[..., None, None]


def test_buffers_and_a_context_of_integers() -> None:
    net = InvertibleSequential(*[AdditiveCoupling(Looked()) for _ in range(3)]).double()
    x, index = sample(requires_grad=True), torch.tensor([0, 2])
    inputs = [x, *parameters(net)]
    assert_right_when_compiled(net, lambda: weighed(net(x, index)), inputs)


def test_the_paper_s_block(anchors) -> None:
    layers = [
        OrthogonalCoupling(GatedResidualBlock(2, 2, hidden=3, stride=2), channels=4)
        for _ in range(3)
    ]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)
    with torch.device(DEVICE):  # as if the user had made it the default
        assert_right_when_compiled(net, lambda: weighed(net(x)), [x, *parameters(net)])


class Same(InvertibleModule):
    """A layer whose output is its input."""

    def forward(self, x, *_):
        return x

    inverse = forward


class Transposed(InvertibleModule):
    """A layer whose output is a view of its input."""

    def forward(self, x, *_):
        return x.transpose(-1, -2)

    inverse = forward


class Tied(Conditioner):
    """A conditioner that has one weight under two names."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.third = nn.Conv2d(2, 4, 3, padding=1)
        self.third.weight = self.first.weight

    def forward(self, x):
        return super().forward(x) + self.third(x.sin())[:, :2]


STACKS = {
    "Householder1x1": lambda: [Householder1x1(4), AdditiveCoupling(Conditioner(2, 2))],
    "the identity": lambda: [Same(), OrthogonalCoupling(Conditioner(2, 2), channels=4)],
    "views": lambda: [OrthogonalCoupling(Conditioner(2, 2), channels=4), Transposed()],
    "tied weights": lambda: [Householder1x1(4), AdditiveCoupling(Tied())],
}


@pytest.mark.parametrize(
    ("case", "anchors"),
    [*((case, 0) for case in sorted(STACKS)), ("the identity", 1), ("views", 1)],
)
def test_stacks_in_which_rebuilt_states_reach_a_conditioner(case, anchors) -> None:
    layers = [layer for _ in range(2) for layer in STACKS[case]()]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)
    assert_right_when_compiled(net, lambda: weighed(net(x)), [x, *parameters(net)])


def test_compiled_conditioners(anchors) -> None:
    net, x = stack(anchors, dropout=0.0), sample(requires_grad=True)

    def gradients(direction):
        y = getattr(net, direction)(x)
        return torch.autograd.grad(weighed(y), [x, *parameters(net)])

    net.memory = "store"
    expected = [gradients(direction) for direction in ("forward", "inverse")]
    net.memory = "invert"
    runs = []

    def backend(graph, _):
        def run(*arguments):
            runs.append(graph)
            return graph(*arguments)

        return run

    own = [c for c in couplings(net) if isinstance(c.conditioner, Conditioner)]
    for layer in own:  # PyTorch compiles no `nn.Sequential` in place
        layer.conditioner.compile(backend=backend, fullgraph=True)
    for direction, reference in zip(("forward", "inverse"), expected, strict=True):
        runs.clear()
        assert_all_equal(gradients(direction), reference)
        assert len(runs) == 2 * len(own)


COMPILED = {  # how a user compiles a network inside of a layer
    "wrapped": lambda m: torch.compile(m, backend="aot_eager"),
    "in place": lambda m: m.compile(backend="aot_eager") or m,
    "its function": lambda m: Calling(torch.compile(m.forward, backend="aot_eager"), m),
}


class Calling(nn.Module):
    """Call a function, with the parameters of a module."""

    def __init__(self, function, module):
        super().__init__()
        self.function, self.module = function, module

    def forward(self, x):
        return self.function(x)


@settings(max_examples=6)
@given(
    st.lists(st.sampled_from(sorted(COMPILED)), min_size=1, max_size=3),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_the_pass_that_compiles_a_network_is_right_too(names, sizes, seed) -> None:
    """Also where another size compiles it anew."""
    torch._dynamo.reset()
    torch.manual_seed(seed)

    layers = [
        ReversibleBlock(COMPILED[n](Conditioner(2, 2)), Conditioner(2, 2))
        for n in names
    ]
    net = InvertibleSequential(*layers, anchors=0).double()
    for size in sizes:
        x = torch.randn(size, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        inputs = [x, *parameters(net)]
        net.memory = "invert"  # first, so that it is the pass that compiles
        found = torch.autograd.grad(weighed(net(x)), inputs)
        net.memory = "store"
        assert_all_equal(found, torch.autograd.grad(weighed(net(x)), inputs))


@pytest.mark.parametrize("memory", ["invert", "store"])
def test_transforms_inside_of_a_compiled_function(memory) -> None:
    net, x = stack(0, depth=3), sample(requires_grad=True)
    net.memory = memory

    def gradient(x):
        return torch.func.grad(lambda x: weighed(net(x)))(x)

    def per_sample(x):
        return torch.func.vmap(gradient)(x.unsqueeze(1))

    for function in (gradient, per_sample):
        assert_equal(compiled(function)(x), function(x))
        found, expected = (
            torch.autograd.grad(weighed(f(x)), x)[0]
            for f in (compiled(function), function)
        )
        assert_equal(found, expected)


def test_autocast() -> None:
    net = stack(2, depth=4).float()
    x = sample()
    exact = stack(2, depth=4)
    exact.load_state_dict(net.state_dict())
    reference = torch.autograd.grad(exact(x).square().sum(), parameters(exact))

    def loss():
        with torch.autocast(DEVICE, torch.bfloat16):
            return net(x.float()).square().sum()

    found = torch.autograd.grad(compiled(loss)(), parameters(net))
    total = [torch.cat([g.double().flatten() for g in gs]) for gs in (found, reference)]
    assert 1e-4 < relative_error(*total) < 5e-2


def test_no_grad() -> None:
    net, x = stack(2, depth=4), sample()
    with torch.no_grad():
        assert_equal(compiled(net)(x), net(x))


@ON_THE_CPU
def test_what_a_gpu_rounds_is_asked_while_the_graph_is_made(monkeypatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(
        checks, "tf32_dtypes", lambda p, _: precision.tf32_dtypes(p, gpu)
    )
    net, x = stack(0, depth=4).float(), sample().float()
    inputs = parameters(net)
    function = compiled(lambda: net(x).square().mean())
    found = torch.autograd.grad(function(), inputs)
    net.memory = "store"
    expected = torch.autograd.grad(net(x).square().mean(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other, 1e-3) < 1e-3
