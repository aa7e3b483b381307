"""One table of situations, which both engines must do right or refuse by name.

Each situation is a container. Its results are those of plain autograd, of the eager
engine, and of `torch.compile`, in one graph and with graph breaks. In one graph what
cannot be right is refused with a sentence that names what is wrong. With graph breaks
the container then runs outside of the graph, and does what the eager engine does.
"""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.exc import TorchDynamoException, Unsupported
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from invtorch import (
    AdditiveCoupling,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
    WithoutContext,
)
from tests.compilation import COMPILING, compiled
from tests.integration.hooks.test_module_hooks import CASES, Nested
from tests.parts import Conditioner, Reverse, Scale
from tests.stacks import parameters
from tests.strategies import costly, weighed
from tests.tolerances import assert_all_equal

pytestmark = [
    *COMPILING,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning"),
]


# --- what is compared -----------------------------------------------------------------


def outcome(net, function, x):
    """Return output and gradients, or the sentence with which they are refused."""
    torch.manual_seed(0)
    net.zero_grad()
    try:
        y = function(x)
        grads = torch.autograd.grad(weighed(y), [x, *parameters(net)])
    except RuntimeError as error:
        return str(error)
    return [y.detach(), *grads]


def assert_same(found, expected) -> None:
    """Compare tensors by value, and sentences word for word."""
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert_all_equal(found, expected)


def assert_right_or_refused(net, refusal: str = "", backend="aot_eager") -> None:
    """Run a container in all ways, on copies, so that each starts from the same state.

    Args:
        net: The container.
        refusal: What its refusal in one graph says; empty if it is not refused.
        backend: Runs the graph; "eager" shows what was traced, in half of the time.
    """
    torch._dynamo.reset()
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    eager, broken, whole = (copy.deepcopy(net) for _ in range(3))
    expected = outcome(eager, eager, x)
    if not isinstance(expected, str):
        plain = copy.deepcopy(net)
        plain.memory = "store"
        assert_same(expected, outcome(plain, plain, x))
    if refusal:
        with pytest.raises(Unsupported, match=refusal):
            compiled(whole, "eager")(x)
        function = compiled(broken, "eager", fullgraph=False)
        assert_same(outcome(broken, function, x), expected)
    else:
        found = outcome(whole, compiled(whole, backend), x)
        assert_same(found, expected)


def chain(*layers, **options):
    """Return a container whose last layers see what the first ones made."""
    members = [m for layer in layers for m in (layer, Reverse())]
    options = {"anchors": 0, **options}
    return InvertibleSequential(*members, Scale(4), **options).double()


def additive() -> AdditiveCoupling:
    return AdditiveCoupling(Conditioner(2, 2))


# --- randomness -----------------------------------------------------------------------


class Added(nn.Module):
    """A conditioner with a small random part, which no comparison of states shows."""

    def __init__(self, part) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        if isinstance(part, nn.Module):
            self.part = part
        self.function = part

    def forward(self, x):
        h = torch.tanh(self.conv(x))
        return h + 1e-12 * self.function(h)


class Attention(nn.Module):
    """Attention between positions, with dropout of its weights."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        if own:
            self.attention = nn.MultiheadAttention(2, 1, dropout=0.5, batch_first=True)

    def forward(self, h):
        s = h.flatten(2).transpose(1, 2)
        if self.own:
            s = self.attention(s, s, s, need_weights=False)[0]
        else:
            rate = 0.5 if self.training else 0.0
            s = F.scaled_dot_product_attention(s, s, s, dropout_p=rate)
        return s.transpose(1, 2).reshape(h.shape)


class Recurrent(nn.Module):
    """A recurrent network along positions, with dropout between its layers."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.net = kind(2, 2, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, h):
        s = self.net(h.flatten(2).transpose(1, 2))[0]
        return s.transpose(1, 2).reshape(h.shape)


def checkpointed(h):
    return checkpoint(lambda t: F.dropout(t.sin()), h, use_reentrant=False)


RANDOM = {
    "Dropout": lambda: nn.Dropout(0.5),
    "Dropout2d": lambda: nn.Dropout2d(0.5),
    "AlphaDropout": lambda: nn.AlphaDropout(0.5),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.5),
    "RReLU": nn.RReLU,
    "scaled_dot_product_attention": lambda: Attention(own=False),
    "dropout": lambda: lambda h: F.dropout(h, 0.1),
    "dropout in place": lambda: lambda h: F.dropout(h * 1, 0.1, inplace=True),
    "rrelu": lambda: lambda h: F.rrelu(h, training=True),
    "gumbel_softmax": lambda: lambda h: F.gumbel_softmax(h, dim=1),
    "rand_like": lambda: torch.rand_like,
    "randn": lambda: lambda h: torch.randn(h.shape, dtype=h.dtype),
    "randint": lambda: lambda h: torch.randint(9, h.shape),
    "randperm": lambda: lambda h: h[:, torch.randperm(2)],
    "bernoulli": lambda: lambda h: torch.bernoulli(h.sigmoid().detach()),
    "multinomial": lambda: (
        lambda h: (
            torch.multinomial(h.detach().abs().mean((2, 3)), 1)
            .double()
            .view(-1, 1, 1, 1)
        )
    ),
    "poisson": lambda: lambda h: torch.poisson(h.detach().abs()),
    "normal": lambda: lambda h: torch.normal(h.detach(), 1.0),
    "normal_": lambda: lambda h: torch.empty_like(h).normal_(),
    "exponential_": lambda: lambda h: torch.empty_like(h).exponential_(),
    "checkpoint": lambda: checkpointed,
}
DRAWS = r"layer 2 \(AdditiveCoupling\) draws random numbers \(\w+\)"
# Dynamo cannot trace these at all
UNTRACED = {"LSTM": nn.LSTM, "GRU": nn.GRU}


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_what_draws_random_numbers_is_refused(name) -> None:
    net = chain(additive(), AdditiveCoupling(Added(RANDOM[name]())))
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(Unsupported, match=DRAWS):
        compiled(net, "eager")(x)


def test_what_draws_random_numbers_runs_outside_of_the_graph() -> None:
    """All of them in one container: that it leaves the graph takes seconds."""
    layers = [AdditiveCoupling(Added(RANDOM[name]())) for name in sorted(RANDOM)]
    assert_right_or_refused(chain(additive(), *layers), DRAWS)


@pytest.mark.parametrize("name", sorted(UNTRACED))
def test_recurrent_networks_with_dropout_are_not_compiled_wrongly(name) -> None:
    net = chain(additive(), AdditiveCoupling(Added(Recurrent(UNTRACED[name]))))
    assert_right_or_refused(net, "RNN|LSTM|GRU|draws random numbers")


@pytest.mark.parametrize("training", [True, False])
def test_a_module_of_attention_is_refused(training) -> None:
    net = chain(additive(), AdditiveCoupling(Added(Attention(own=True))))
    assert_right_or_refused(net.train(training), r"layer 2 .* calls a MultiheadAtt")


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
@pytest.mark.parametrize(
    "part", [lambda h: h * random.random(), lambda h: h * np.random.rand()]
)
def test_random_numbers_of_python_and_numpy_are_refused(part) -> None:
    """By PyTorch, where it cannot trace them, or as those of PyTorch."""
    net = chain(AdditiveCoupling(Added(part)))
    with pytest.raises(TorchDynamoException, match="random"):
        compiled(net, "eager")(torch.randn(2, 4, 4, 3, dtype=torch.float64))


QUIET = {
    "Dropout": lambda: nn.Dropout(0.5),
    "RReLU": nn.RReLU,
    "scaled_dot_product_attention": lambda: Attention(own=False),
}


@pytest.mark.parametrize("name", sorted(QUIET))
def test_what_draws_none_in_this_mode_is_compiled(name) -> None:
    net = chain(additive(), AdditiveCoupling(Added(QUIET[name]())))
    assert_right_or_refused(net.eval(), backend="eager")


# --- structures -----------------------------------------------------------------------


class Doubled(InvertibleSequential):
    """A container that does more than its members in one direction."""

    def forward(self, x, *context):
        return super().forward(x, *context) * 2

    def inverse(self, y, *context):
        return super().inverse(y / 2, *context)


class Counted(InvertibleSequential):
    """A container whose redefined direction changes nothing."""

    def forward(self, x, *context):
        return super().forward(x + 0, *context) if False else super().forward(x)


class Twice(WithoutContext):
    """A composite of this package with a direction of its own."""

    def inverse(self, y, *context):
        return super().inverse(y, *context)


def replaced():
    inner = chain(additive())
    forward = inner.forward
    inner.forward = lambda x, *context: forward(x, *context)
    return inner


def with_memory(module, memory):
    module.memory = memory
    return module


def with_hook(module):
    module.register_forward_hook(lambda _, __, y: 2 * y)
    return module


def watched(module):
    module.register_forward_hook(lambda *_: None)
    return module


NESTINGS = {
    "a container": (lambda: chain(additive()), ""),
    "WithoutContext": (lambda: WithoutContext(additive()), ""),
    "an inverse": (lambda: chain(additive()).inv, ""),
    "an inverse of a layer": (lambda: additive().inv, ""),
    "a redefined direction": (lambda: Counted(additive(), anchors=0), "Counted rede"),
    "a redefined scale": (lambda: Doubled(additive(), anchors=0), "Doubled redefines"),
    "a redefined inverse": (lambda: Twice(additive()), "Twice redefines inverse"),
    "a replaced method": (replaced, "InvertibleSequential redefines forward"),
    **{
        f"memory={memory!r} of {name}": (
            lambda make=make, memory=memory: with_memory(make(), memory),
            rf"{kind}\)? has memory='{memory}'",
        )
        for memory in ("store", "checkpoint", "offload")
        for name, kind, make in (
            ("a container", "InvertibleSequential", lambda: chain(additive())),
            ("WithoutContext", "WithoutContext", lambda: WithoutContext(additive())),
            ("an inverse", "Inverse", lambda: additive().inv),
            ("a layer", "AdditiveCoupling", additive),
        )
    },
}


@pytest.mark.parametrize("name", sorted(NESTINGS))
def test_nested_modules(name) -> None:
    make, refusal = NESTINGS[name]
    assert_right_or_refused(chain(additive(), make()), refusal, backend="eager")


OWNERS = {
    "the layer": lambda net: net[0],
    "an inverse": lambda net: net[2],
    "WithoutContext": lambda net: net[4],
    "a nested container": lambda net: net[6],
}


@pytest.mark.parametrize("owner", sorted(OWNERS))
@given(case=st.sampled_from(CASES), data=st.data())
@costly(5)  # of each owner: 20 draws of 17 cases
def test_hooks_on_anything_are_refused(owner, case, data) -> None:
    register, values = case.values
    if values.get("with_kwargs"):
        values = {**values, "with_kwargs": False}  # those hooks look for one argument
    nested = chain(AdditiveCoupling(Nested()))
    net = chain(additive(), additive().inv, WithoutContext(additive()), nested)
    module = OWNERS[owner](net)
    register(module, **values)
    wrapped = data.draw(st.booleans())
    net = chain(net) if wrapped else net
    assert_right_or_refused(net, rf"{type(module).__name__}\)? has hooks")


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are")
def test_hooks_of_all_modules_are_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert_right_or_refused(chain(additive()), "hooks of all modules")
    finally:
        handle.remove()


def test_hooks_of_the_outermost_container_are_called() -> None:
    assert_right_or_refused(with_hook(chain(additive(), additive())))


# --- options --------------------------------------------------------------------------

OPTIONS = {
    "guard='raise'": ({}, ""),
    "guard=None": ({"guard": None}, ""),
    "guard='warn'": ({"guard": "warn"}, "guard='warn' is not supported"),
    "guard='adapt'": ({"guard": "adapt"}, "guard='adapt' is not supported"),
    "anchors=1": ({"anchors": 1}, ""),
    "anchors=[2]": ({"anchors": [2]}, ""),
    "anchors='auto'": ({"anchors": "auto"}, "anchors='auto' is not supported"),
    "memory='store'": ({"memory": "store"}, ""),
    "memory='checkpoint'": ({"memory": "checkpoint"}, "memory='checkpoint' is not"),
    "memory='offload'": ({"memory": "offload"}, "memory='offload' is not supported"),
    "memory='auto'": ({"memory": "auto"}, "memory='auto' is planned outside"),
    "state_dtype": ({"state_dtype": torch.float64}, ""),
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options(name) -> None:
    options, refusal = OPTIONS[name]
    layers = additive(), OrthogonalCoupling(Conditioner(2, 2), channels=4)
    assert_right_or_refused(chain(*layers, **options), refusal)


# --- sizes that change ----------------------------------------------------------------

SIZES = ((2, 4, 4, 3), (2, 4, 5, 3), (3, 4, 6, 6))


def changing(function, mark):
    """Return output and gradients of passes over inputs of several sizes."""
    results = []
    for size in SIZES:
        torch.manual_seed(sum(size))
        x = torch.randn(size, dtype=torch.float64, requires_grad=True)
        mark(x)
        y = function(x)
        results += [y.detach(), *torch.autograd.grad(weighed(y), x)]
    return results


def marked(mark):
    return lambda x: [mark(x, dim) for dim in (0, 2, 3)]


DYNAMIC = {
    "a second size": ({}, lambda x: None),
    "dynamic=True": ({"dynamic": True}, lambda x: None),
    "dynamic=False": ({"dynamic": False}, lambda x: None),
    "maybe_mark_dynamic": ({}, marked(torch._dynamo.maybe_mark_dynamic)),
}


def resized():
    """Return a container after a network whose sizes are expressions of its own."""
    before = nn.Conv2d(4, 4, 3, stride=2, padding=1).double()
    layers = additive(), OrthogonalCoupling(Conditioner(2, 2), channels=4)
    return nn.Sequential(before, chain(*layers))


@pytest.mark.parametrize("name", sorted(DYNAMIC))
def test_sizes_that_change(name) -> None:
    options, mark = DYNAMIC[name]
    net = resized()
    expected = changing(net, lambda x: None)
    assert_all_equal(changing(compiled(net, **options), mark), expected)


def test_a_size_marked_as_dynamic_is_refused() -> None:
    net, mark = chain(additive()), marked(torch._dynamo.mark_dynamic)
    with pytest.raises(Unsupported, match="a size marked by mark_dynamic is not supp"):
        changing(compiled(net, "eager"), mark)
    torch._dynamo.reset()
    function = compiled(net, "eager", fullgraph=False)
    assert_all_equal(changing(function, mark), changing(net, lambda x: None))


# --- checkpoint -----------------------------------------------------------------------


class Checkpointed(Conditioner):
    """A conditioner that evaluates itself again in its backward pass."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def test_checkpoint_inside_is_refused() -> None:
    net = chain(AdditiveCoupling(Checkpointed(2, 2)), additive())
    assert_right_or_refused(net, r"layer 0 \(AdditiveCoupling\) calls `checkpoint`")


@pytest.mark.parametrize("memory", ["invert", "store"])
def test_checkpoint_around(memory) -> None:
    couplings = additive(), OrthogonalCoupling(Conditioner(2, 2), channels=4)
    net = chain(*couplings, Householder1x1(4), memory=memory)
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)

    def around(x):
        return checkpoint(net, x, use_reentrant=False)

    found = outcome(net, compiled(around, "aot_eager"), x)
    assert_same(found, outcome(net, net, x))


# --- compiled autograd ----------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
def test_compiled_autograd(inside) -> None:
    """A container is a part of its graph, or, outside of a graph, is replayed."""
    net = chain(additive(), OrthogonalCoupling(Conditioner(2, 2), channels=4))
    net.guard = "raise" if inside else "warn"  # which a graph does not support
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    tensors = [x, *parameters(net)]
    weighed(net(x)).backward()
    expected = [t.grad for t in tensors]
    for t in tensors:
        t.grad = None

    def step():
        weighed(net(x)).backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        compiled(step, "eager", fullgraph=False)()
    assert_all_equal([t.grad for t in tensors], expected)


# --- graph breaks ---------------------------------------------------------------------


class Breaks(Conditioner):
    """A conditioner that Dynamo cannot trace as one graph."""

    def forward(self, x):
        h = super().forward(x)
        torch._dynamo.graph_break()
        return h.sin()


class Depends(Conditioner):
    """A conditioner that reads a value of a tensor."""

    def forward(self, x):
        h = super().forward(x)
        return h.sin() if h.sum() > 0 else h.cos()


class Writes(Conditioner):
    """A conditioner that replaces an attribute of its own."""

    def forward(self, x):
        self.last = super().forward(x).sin()
        return self.last


class Inner(nn.Module):
    """A conditioner that is a container of its own, inside of another network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = chain(additive())
        self.first, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.net(self.first(x).tanh()))


@pytest.mark.parametrize("conditioner", [Breaks, Depends, Writes])
def test_graph_breaks_inside_of_a_layer(conditioner) -> None:
    net = chain(AdditiveCoupling(conditioner(2, 2)), additive())
    assert_right_or_refused(net, "graph_break|[Dd]ata-dependent|side effect")


def test_a_container_inside_of_a_conditioner() -> None:
    net = chain(AdditiveCoupling(Inner()), additive())
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    expected = outcome(net, net, x)
    assert_same(outcome(net, compiled(net, "eager", fullgraph=False), x), expected)


# --- one after another ----------------------------------------------------------------


def is_in_a_graph(function, x) -> bool:
    """Return whether a pass was compiled: a tape has nodes of its own."""
    nodes, seen = [function(x).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return not any("CallNode" in type(node).__name__ for node in seen)


REASONS = {
    "dropout": lambda: AdditiveCoupling(Conditioner(2, 2, dropout=0.5)),
    "a hook": lambda: watched(WithoutContext(additive())),
    "another strategy": lambda: with_memory(additive(), "store"),
    "a graph break": lambda: AdditiveCoupling(Breaks(2, 2)),
    "a wrong shape": lambda: AdditiveCoupling(Conditioner(3, 3)),
}


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_fallback_leaves_other_containers_compiled(reason) -> None:
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    first, other = chain(additive(), REASONS[reason]()), chain(additive())
    if reason == "a wrong shape":
        with pytest.raises(RuntimeError):
            compiled(first, "eager", fullgraph=False)(x)
    else:
        assert not is_in_a_graph(compiled(first, "eager", fullgraph=False), x)
    for function in (other, other[0], other.inverse):
        assert is_in_a_graph(compiled(function, "eager"), x)
