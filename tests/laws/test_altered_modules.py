"""Whatever a module holds, and wherever, gradients are those of plain autograd.

A convolution may have its bias as a buffer, share a weight with another one, or have a
parameter of integers. A closed form reads tensors from where PyTorch puts them, so it
must not be taken for a module that keeps one of them elsewhere. Modules are altered
before their first use, between steps, and between forward and backward.
"""

import copy

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.parts import Conditioner
from tests.stacks import (
    alternating,
    both,
    chained,
    closed_form_network,
    gated,
    gradients_of,
    sample,
)
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.weight_norm` is deprecated"
)


class Twice(nn.Module):
    """A parametrization that doubles."""

    def forward(self, weight):
        return 2 * weight


def to_buffer(module: nn.Module, name: str) -> None:
    value = getattr(module, name).detach().clone()
    delattr(module, name)
    module.register_buffer(name, value)


def to_attribute(module: nn.Module, name: str) -> None:
    value = getattr(module, name).detach().clone()
    delattr(module, name)
    setattr(module, name, value)


def to_none(module: nn.Module, name: str) -> None:
    if name == "bias" and isinstance(module, nn.Conv2d):
        module.register_parameter("bias", None)


def frozen(module: nn.Module, name: str) -> None:
    getattr(module, name).requires_grad_(False)


def replaced(module: nn.Module, name: str) -> None:
    value = getattr(module, name)
    setattr(module, name, nn.Parameter(torch.randn_like(value)))


def parametrized(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, Twice())


def shared(module: nn.Module, name: str) -> None:
    """Let all channels read the same parameter by another name, too."""
    module.register_parameter("again", getattr(module, name))


def tied(module: nn.Module, name: str) -> None:
    """Let the bias of a map be that of another name, of the same shape."""
    if name == "bias":
        module.bias = nn.Parameter(module.bias.detach().clone())
        module.register_parameter("tie", module.bias)


def missing(module: nn.Module, name: str) -> None:
    """Remove a parameter, and hold a number in its place."""
    if name == "bias":
        delattr(module, name)
        module.bias = None


def computed(module: nn.Module, name: str) -> None:
    """Replace a parameter by a tensor with a graph, as replicas have it."""
    value = getattr(module, name).detach().clone().requires_grad_()
    delattr(module, name)
    setattr(module, name, 2 * value)


def computed_in_place(module: nn.Module, name: str) -> None:
    """Let the dictionary of parameters hold a tensor with a graph."""
    vars(module)["_parameters"][name] = 2 * getattr(module, name)


def computed_buffer(module: nn.Module, name: str) -> None:
    value = 2 * getattr(module, name).detach().clone().requires_grad_()
    delattr(module, name)
    module.register_buffer(name, value)


def leaf(module: nn.Module, name: str) -> None:
    """Hold a leaf that is no parameter."""
    to_attribute(module, name)
    getattr(module, name).requires_grad_()


def shadowing(module: nn.Module, name: str) -> None:
    """Let an attribute of the instance hide a method."""
    original = module.forward
    module.forward = lambda x: 2 * original(x)


def shadowed_convolution(module: nn.Module, name: str) -> None:
    if isinstance(module, nn.Conv2d):
        original = module._conv_forward
        module._conv_forward = lambda *arguments: 2 * original(*arguments)


def shadowed_weight(module: nn.Module, name: str) -> None:
    vars(module)[name] = 2 * getattr(module, name).detach()


def hooked(module: nn.Module, name: str) -> None:
    module.register_forward_hook(lambda *call: 2 * call[-1])


def made_by_a_hook(module: nn.Module, name: str) -> None:
    """Compute a parameter before every call, as older PyTorch and pruning do."""
    own = getattr(module, name)
    delattr(module, name)
    module.register_parameter(name + "_own", own)
    setattr(module, name, own.detach())

    def compute(module, _):
        setattr(module, name, torch.sin(getattr(module, name + "_own")))

    module.register_forward_pre_hook(compute)


def pruned(module: nn.Module, name: str) -> None:
    prune.random_unstructured(module, name, 0.5)


def normalized(module: nn.Module, name: str) -> None:
    if getattr(module, name).ndim > 1:
        parametrizations.weight_norm(module, name)


def normalized_by_a_hook(module: nn.Module, name: str) -> None:
    if getattr(module, name).ndim > 1:
        nn.utils.weight_norm(module, name)


def spectrally_normalized_by_a_hook(module: nn.Module, name: str) -> None:
    if getattr(module, name).ndim > 1:
        nn.utils.spectral_norm(module, name)


def with_integers(module: nn.Module, name: str) -> None:
    count = nn.Parameter(torch.arange(3), requires_grad=False)
    module.register_parameter("count", count)


ALTERATIONS = [
    *(to_buffer, to_attribute, to_none, frozen, replaced, parametrized, shared),
    *(with_integers, tied, missing, computed, computed_in_place, computed_buffer),
    *(leaf, shadowing, shadowed_convolution, shadowed_weight, hooked, pruned),
    *(made_by_a_hook, normalized, normalized_by_a_hook),
    *(spectrally_normalized_by_a_hook,),
]


def opaque(half: int) -> nn.Module:
    """Return a conditioner that has no closed form."""
    return Conditioner(half, half)


def integers_first(net: InvertibleSequential) -> None:
    """Let the first parameter of every conditioner be one of integers."""
    for layer in net:
        conditioner = getattr(layer, "conditioner", None)
        if conditioner is not None:
            with_integers(conditioner, "")


@st.composite
def networks(draw: st.DrawFn) -> InvertibleSequential:
    """Draw a network of couplings."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    block = draw(st.sampled_from([chained, gated, opaque]))
    net = closed_form_network(draw(st.sampled_from([0, 2])), block)[:5]
    if draw(st.booleans()):
        integers_first(net)
    return net


Change = tuple[int, int]  # numbers that choose an alteration and its place
changes = st.tuples(st.integers(0, 2**20), st.integers(0, len(ALTERATIONS) - 1))
some = st.lists(changes, max_size=3)


def alter(net: nn.Module, drawn: list[Change]) -> None:
    """Alter some modules of a network."""
    for place, kind in drawn:
        places = [
            (part, name)
            for part in net.modules()
            if not parametrize.is_parametrized(part)
            for name in ("weight", "bias", "vectors")
            if isinstance(vars(part)["_parameters"].get(name), nn.Parameter)
        ]
        if places:
            torch.manual_seed(place)
            ALTERATIONS[kind](*places[place % len(places)])


def held(net: nn.Module) -> list[torch.Tensor]:
    """Return what the modules of a network hold and a gradient can be asked for."""
    tensors = [
        tensor
        for part in net.modules()
        for own in (vars(part), vars(part)["_parameters"], vars(part)["_buffers"])
        for tensor in own.values()
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad
    ]
    return [*{id(t): t for t in tensors}.values()]


def run(net, drawn, memory: str) -> list[torch.Tensor | None]:
    """Return outputs and gradients of three steps, between which modules change."""
    before, between, within, after = drawn
    net, results = copy.deepcopy(net), []
    net.memory = memory
    torch.manual_seed(3)
    x = sample(requires_grad=True)
    alter(net, before)
    for step, now in enumerate((between, within, after)):
        tensors, y = [x, *held(net)], net(x)
        if step == 1:
            alter(net, now)
            tensors = [t for t in tensors if t.requires_grad]
        results += [y, *torch.autograd.grad(weighed(y), tensors, allow_unused=True)]
        if step != 1:
            alter(net, now)
    return results


# of alterations that plain PyTorch refuses together
REFUSED_BY_PYTORCH = (RuntimeError, TypeError, KeyError, AssertionError)
REFUSED = (
    "was replaced between forward and backward",  # the class, by a parametrization
    "a replaced method changed it",  # the state, behind a layer
    "was modified in place between",  # the original, when it is parametrized
)


def is_refused(error: RuntimeError) -> bool:
    return any(words in str(error) for words in REFUSED)


@given(networks(), st.tuples(some, some, some, some))
def test_three_steps_equal_plain_autograd_or_raise(net, drawn) -> None:
    try:
        expected = run(net, drawn, "store")
    except REFUSED_BY_PYTORCH:
        reject()
    if not all(t.isfinite().all() for t in expected if t is not None):
        reject()  # a Householder vector of which all entries were pruned
    try:
        found = run(net, drawn, "invert")
    except RuntimeError as error:
        if not is_refused(error):
            raise
    else:
        assert_all_equal(found, expected)


def test_a_bias_that_is_a_buffer_is_added(recorded_calls) -> None:
    net, x = closed_form_network(0, chained), sample(requires_grad=True)
    to_buffer(net[2].conditioner[0], "bias")
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert recorded_calls.count(None) == 1


def test_a_first_parameter_of_integers_sets_no_precision() -> None:
    net = alternating([AdditiveCoupling(opaque(2)) for _ in range(3)]).double()
    integers_first(net)
    x = sample(requires_grad=True)
    assert_all_equal(*both(net, gradients_of(net, x)))
    assert torch.autograd.grad(net(x).sum(), x)[0].ne(1).any()
