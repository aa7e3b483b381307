"""Under `torch.compile` gradients stay right and memory saved, or the user is told."""

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.nn import functional as F

from invtorch import (
    AdditiveCoupling,
    GatedResidualBlock,
    Householder1x1,
    InvertibleModule,
    InvertibleSequential,
    OrthogonalCoupling,
    WithoutContext,
)
from invtorch.planning import measure_memory
from tests.parts import Conditioner, Leapfrog, Scale
from tests.stacks import parameters, sample, stack
from tests.strategies import weighed
from tests.tolerances import assert_all_equal, assert_equal, relative_error

pytestmark = [  # what Dynamo does with non-leaf inputs, and to trace a function
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[0, 3], ids=["inversion", "3 anchors"])
def anchors(request) -> int:
    """Return fewer anchors than there are layers: a graph of many takes long."""
    return request.param


def compiled(function, backend="aot_eager", fullgraph=True):
    return torch.compile(function, backend=backend, fullgraph=fullgraph)


def assert_right_when_compiled(net, function, inputs, **options) -> None:
    """Compare a compiled function of a network with its plain form in eager mode."""
    net.memory = "store"
    expected = torch.autograd.grad(function(), inputs, allow_unused=True)
    net.memory = "invert"
    found = torch.autograd.grad(
        compiled(function, **options)(), inputs, allow_unused=True
    )
    assert_all_equal(found, expected)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_compiled_container_in_one_graph(direction, anchors) -> None:
    net, x = stack(anchors, depth=6), sample(requires_grad=True)

    def loss():
        return weighed(getattr(net, direction)(torch.sin(x)) * 2)

    assert_right_when_compiled(net, loss, [x, *parameters(net)])


def test_more_layers_than_the_default_has_anchors() -> None:
    net, x = stack(anchors=8, depth=10), sample(requires_grad=True)
    assert_right_when_compiled(net, lambda: weighed(net(x)), [x, *parameters(net)])


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_inductor() -> None:
    net, x = stack(1, depth=3), sample(requires_grad=True)
    inputs = [x, *parameters(net)]
    assert_right_when_compiled(net, lambda: weighed(net(x)), inputs, backend="inductor")


def test_nested_containers_shared_blocks_and_contexts(anchors) -> None:
    a, b, c = stack(0, depth=3), stack(0, depth=3), stack(0, depth=2)
    net = InvertibleSequential(*a, b, WithoutContext(c), a[1], b[0].inv)
    net.anchors = anchors
    x, context = sample(requires_grad=True), sample(1, requires_grad=True)

    def loss():
        return weighed(net(x, context, context) * context)

    assert_right_when_compiled(net, loss, [x, context, *parameters(net)])


def test_tuple_states(anchors) -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(6)], anchors=anchors)
    net.double()
    q, p = sample(2, requires_grad=True), sample(2, requires_grad=True)

    def loss():
        a, b = net((q, p))
        return weighed(a) + weighed(b * a)

    assert_right_when_compiled(net, loss, [q, p, *parameters(net)])


def test_frozen_parameters_and_an_input_without_gradient(anchors) -> None:
    net, x = stack(anchors, depth=6), sample()
    net[3].requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    assert_right_when_compiled(net, lambda: weighed(net(x)), trained)


def test_the_paper_s_block(anchors) -> None:
    layers = [
        OrthogonalCoupling(GatedResidualBlock(2, 2, hidden=3, stride=2), channels=4)
        for _ in range(4)
    ]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)
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


@pytest.mark.parametrize("anchors", [0, 1])
@pytest.mark.parametrize("case", sorted(STACKS))
def test_stacks_in_which_rebuilt_states_reach_a_conditioner(case, anchors) -> None:
    layers = [layer for _ in range(2) for layer in STACKS[case]()]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    x = sample(requires_grad=True)
    assert_right_when_compiled(net, lambda: weighed(net(x)), [x, *parameters(net)])


def saved_states(
    depth: int, memory: str, anchors: int = 0, guard: str | None = None
) -> float:
    torch._dynamo.reset()
    layers = [AdditiveCoupling(Conditioner(2, 2)) for _ in range(depth)]
    net = InvertibleSequential(*layers, memory=memory, anchors=anchors, guard=guard)
    x = torch.randn(1, 4, 16, 16)
    function = compiled(net)
    function(x).sum().backward()
    return measure_memory(lambda: function(x)).live / x.nbytes


def test_memory_is_flat_in_depth() -> None:
    assert [saved_states(depth, "invert") for depth in (2, 4, 8)] == [1.0, 1.0, 1.0]
    plain = [saved_states(depth, "store") for depth in (2, 4, 8)]
    assert plain[2] > plain[1] + 4 > plain[0] + 6


def test_the_guard_keeps_at_most_five_numbers_a_state() -> None:
    for depth in (2, 8):
        found = saved_states(depth, "invert", guard="raise")
        assert 1 < found <= 1 + 5 * (depth + 1) / (4 * 16 * 16)


def test_anchors_cost_one_state_each() -> None:
    assert [saved_states(8, "invert", anchors) for anchors in (0, 1, 3)] == [1, 2, 4]


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

    for layer in net:
        layer.conditioner.compile(backend=backend, fullgraph=True)
    for direction, reference in zip(("forward", "inverse"), expected, strict=True):
        runs.clear()
        assert_all_equal(gradients(direction), reference)
        assert len(runs) == 2 * len(net)


@pytest.mark.parametrize("memory", ["invert", "store"])
def test_transforms_inside_of_a_compiled_function(memory) -> None:
    net, x = stack(0), sample(requires_grad=True)
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
    net = stack(3).float()
    x = sample()
    exact = stack(3)
    exact.load_state_dict(net.state_dict())
    reference = torch.autograd.grad(exact(x).square().sum(), parameters(exact))

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return net(x.float()).square().sum()

    found = torch.autograd.grad(compiled(loss)(), parameters(net))
    total = [torch.cat([g.double().flatten() for g in gs]) for gs in (found, reference)]
    assert 1e-4 < relative_error(*total) < 5e-2


def test_no_grad() -> None:
    net, x = stack(3), sample()
    with torch.no_grad():
        assert_equal(compiled(net)(x), net(x))


class Normalized(Conditioner):
    """A conditioner that moves running statistics."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(super().forward(x))


def with_dropout():
    return Conditioner(2, 2, dropout=0.5)


def hooked():
    conditioner = Conditioner(2, 2)
    conditioner.first.register_forward_hook(lambda *_: None)
    return conditioner


REFUSED = {
    "Dropout": (with_dropout, r"layer 0 \(AdditiveCoupling\) draws random numbers"),
    "BatchNorm": (Normalized, r"moves running statistics \(BatchNorm2d\)"),
    "a hook": (hooked, r"has hooks \(on its Conv2d\)"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_be_repeated_is_refused_in_words(case) -> None:
    make, message = REFUSED[case]
    net = InvertibleSequential(*[AdditiveCoupling(make()) for _ in range(3)]).double()
    with pytest.raises(Unsupported, match=message):
        compiled(net)(sample(requires_grad=True))


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_without_fullgraph_the_container_runs_outside_of_the_graph(case) -> None:
    """A graph break, and all that the engine can do in eager mode."""
    make, _ = REFUSED[case]
    net = InvertibleSequential(*[AdditiveCoupling(make()) for _ in range(10)]).double()
    x = sample(requires_grad=True)

    def gradients(function):
        torch.manual_seed(0)
        return torch.autograd.grad(function(), [x, *parameters(net)])

    def loss():
        return weighed(net(torch.sin(x)) * 2)

    net.memory = "store"
    expected = gradients(loss)
    net.memory = "invert"
    assert_all_equal(gradients(compiled(loss, fullgraph=False)), expected)


@pytest.mark.parametrize("option", ["checkpoint", "offload"])
def test_other_strategies_are_refused_in_words(option) -> None:
    net = stack(0, depth=3)
    net.memory = option
    with pytest.raises(Unsupported, match=f"memory='{option}' is not supported under"):
        compiled(net)(sample(requires_grad=True))
    net.memory, net[1].memory = "invert", option
    with pytest.raises(Unsupported, match=f"layer 1 .* has memory='{option}'"):
        compiled(net)(sample(requires_grad=True))


def test_a_log_determinant_is_refused_in_words() -> None:
    net = InvertibleSequential(Scale(4), Scale(4)).double()
    with pytest.raises(Unsupported, match="a log-determinant is not supported under"):
        compiled(net.forward_and_log_det)(sample(requires_grad=True))


def test_a_tensor_captured_by_closure_is_refused_in_words() -> None:
    captured = torch.ones(1, dtype=torch.float64, requires_grad=True)

    class Captures(Conditioner):
        def forward(self, x):
            return super().forward(x) * captured

    net = InvertibleSequential(AdditiveCoupling(Captures(2, 2))).double()
    with pytest.raises(Unsupported, match="reads a tensor that needs a gradient but"):
        compiled(net)(sample(requires_grad=True))


@pytest.mark.parametrize("anchors", [0, 3])
def test_randomness_that_no_module_shows_is_noticed_in_the_backward_pass(
    anchors,
) -> None:
    class Drops(Conditioner):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.1)

    layers = [AdditiveCoupling(Drops(2, 2)) for _ in range(6)]
    net = InvertibleSequential(*layers, anchors=anchors).double()
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 5 .* did not repeat itself"):
        loss.backward()


def test_a_wrong_inverse_is_noticed_in_the_backward_pass() -> None:
    class Wrong(Scale):
        def inverse(self, y):
            return super().inverse(y) * 1.01

    net = InvertibleSequential(Scale(4), Wrong(4), Scale(4), anchors=0).double()
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 1 \(Wrong\) did not repeat itself"):
        loss.backward()


class Clamped(InvertibleModule):
    """A layer that loses what is beyond one half."""

    def forward(self, x, *_):
        return torch.tanh(x.clamp(-0.5, 0.5))

    def inverse(self, y, *_):
        return torch.atanh(y)


def lossy():
    mixed = [Householder1x1(4), AdditiveCoupling(Conditioner(2, 2))]
    return [*mixed, Clamped(), AdditiveCoupling(Conditioner(2, 2))], sample().double()


def drifting():
    layers = []
    for _ in range(8):
        conditioner = Conditioner(2, 2)
        with torch.no_grad():
            conditioner.second.weight.mul_(400)
        layers.append(OrthogonalCoupling(conditioner, channels=4))
    return layers, sample().float()


OFF = {
    "lossy": (lossy, r"inverting layer 2 \(Clamped\) is off by more than"),
    "drifting": (drifting, r"inverting layer \d+ \(OrthogonalCoupling\) is off .*step"),
}


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("case", sorted(OFF))
def test_a_state_rebuilt_wrongly_is_noticed_in_the_backward_pass(
    case, fullgraph
) -> None:
    make, message = OFF[case]
    layers, x = make()
    net = InvertibleSequential(*layers, anchors=0).to(x.dtype)
    loss = compiled(net, fullgraph=fullgraph)(x.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match=message):
        loss.backward()
    torch._dynamo.reset()
    net.guard = None
    compiled(net, backend="eager", fullgraph=fullgraph)(x).sum().backward()


class Coarse(InvertibleModule):
    """A layer in half precision, whose inverse is as exact as that allows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x, *_):
        return x * self.scale.to(x.dtype)

    def inverse(self, y, *_):
        return y / self.scale.to(y.dtype) * 1.005


def test_a_layer_is_not_blamed_for_a_coarser_one_above() -> None:
    net = InvertibleSequential(Same(), Coarse(), anchors=0)
    x = sample().float().requires_grad_()
    compiled(net)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    fine = InvertibleSequential(Same(), Coarse().float(), anchors=0)
    with pytest.raises(RuntimeError, match=r"layer 1 \(Coarse\) is off|did not repeat"):
        compiled(fine)(x).sum().backward()


def test_nan_is_laid_at_the_layer_that_made_it() -> None:
    net = stack(0, depth=3)
    with torch.no_grad():
        net[1].conditioner.second.weight.fill_(torch.nan)
    loss = compiled(net)(sample(requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"layer 1 \(OrthogonalCoupling\) made NaN"):
        loss.backward()


def test_arguments_that_are_no_floating_tensors_are_refused_in_words() -> None:
    net = InvertibleSequential(*[Leapfrog(2) for _ in range(2)], anchors=0)
    q, p = torch.randn(2, 2, 5, 4, requires_grad=True), torch.ones(2, 2, 5, 4).long()
    with pytest.raises(Unsupported, match=r"a state in torch\.int64 is not supported"):
        compiled(net)((q, p))
    with pytest.raises(Unsupported, match="a context that is a dict is not supported"):
        compiled(stack(0, depth=2))(sample(requires_grad=True), {"scale": sample(1)})


@pytest.mark.parametrize("guard", ["warn", "adapt"])
def test_a_guard_that_goes_on_is_refused_in_words(guard) -> None:
    net = stack(0, depth=3)
    net.guard = guard
    with pytest.raises(Unsupported, match=f"guard='{guard}' is not supported under"):
        compiled(net)(sample(requires_grad=True))


def test_a_state_in_half_precision_without_a_guard_is_refused_in_words() -> None:
    net = stack(0, depth=3).bfloat16()
    net.guard = None
    with pytest.raises(
        Unsupported, match=r"a state in torch\.bfloat16 cannot be rebuilt"
    ):
        compiled(net)(sample().bfloat16().requires_grad_())
