"""Every hook that a module can have, on a module inside of a layer."""

from itertools import product

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.autograd import grad

from invtorch import AdditiveCoupling, InvertibleSequential
from tests.compilation import COMPILING, compiled
from tests.stacks import alternating, parameters, sample
from tests.strategies import weighed
from tests.tolerances import assert_all_equal

pytestmark = [
    *COMPILING,
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning"),
]


class Gain(nn.Module):
    """A convolution whose output is multiplied by a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, *, gain):
        return torch.tanh(self.conv(x)) * gain


class Nested(nn.Module):
    """A conditioner with a module inside that takes a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Gain(), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.last(self.inner(x, gain=2.0).sin())


def shifted(tensors):
    return tuple(None if t is None else t + 0.1 for t in tensors)


def tripled(tensors):
    return tuple(None if t is None else 3 * t for t in tensors)


def forward_hooks(module, with_kwargs, **options):
    """Multiply the output, and add to it: the order of the two matters."""
    if with_kwargs:
        hooks = (
            lambda _, args, kwargs, y: y * kwargs["gain"],
            lambda _, args, kwargs, y: y + kwargs["gain"],
        )
    else:
        hooks = lambda _, args, y: y * 1.3, lambda _, args, y: y + 0.1
    for hook in hooks:
        module.register_forward_hook(hook, with_kwargs=with_kwargs, **options)


def forward_pre_hooks(module, with_kwargs, **options):
    if with_kwargs:
        hooks = (
            lambda _, args, kwargs: (args, {"gain": kwargs["gain"] * 1.3}),
            lambda _, args, kwargs: (shifted(args), {"gain": kwargs["gain"] + 0.1}),
        )
    else:
        hooks = lambda _, args: tripled(args), lambda _, args: shifted(args)
    for hook in hooks:
        module.register_forward_pre_hook(hook, with_kwargs=with_kwargs, **options)


def full_backward_hooks(module, **options):
    for change in (tripled, shifted):
        module.register_full_backward_hook(
            lambda _, grads, __, change=change: change(grads), **options
        )


def full_backward_pre_hooks(module, **options):
    for change in (tripled, shifted):
        module.register_full_backward_pre_hook(
            lambda _, grads, change=change: change(grads), **options
        )


def backward_hooks(module):
    """Register the deprecated kind, of which a module can have no other beside it."""
    for change in (tripled, shifted):
        module.register_backward_hook(lambda _, grads, __, c=change: c(grads))


KINDS = {
    "register_forward_hook": (
        forward_hooks,
        ("with_kwargs", "prepend", "always_call"),
    ),
    "register_forward_pre_hook": (forward_pre_hooks, ("with_kwargs", "prepend")),
    "register_full_backward_hook": (full_backward_hooks, ("prepend",)),
    "register_full_backward_pre_hook": (full_backward_pre_hooks, ("prepend",)),
    "register_backward_hook": (backward_hooks, ()),
}
STATE_DICT_KINDS = {  # a call of the module does not call them
    "register_state_dict_pre_hook",
    "register_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
}
CASES = [
    pytest.param(
        register,
        dict(zip(options, values, strict=True)),
        id="-".join([name, *(o for o, v in zip(options, values, strict=True) if v)]),
    )
    for name, (register, options) in KINDS.items()
    for values in product([False, True], repeat=len(options))
]


def network(register, depth: int = 10, **options) -> InvertibleSequential:
    """Return couplings with hooks inside of every second one."""
    torch.manual_seed(1)
    layers = [AdditiveCoupling(Nested()) for _ in range(depth)]
    for layer in layers[::2]:
        register(layer.conditioner.inner)
    return alternating(layers, **options).double()


def results(net, x) -> list[torch.Tensor]:
    y = net(x)
    return [y.detach(), *grad(weighed(y), [x, *parameters(net)])]


def test_all_kinds_of_hooks_are_tested() -> None:
    public = {
        name
        for name in dir(nn.Module)
        if name.startswith("register_") and name.endswith("_hook")
    }
    assert public == {*KINDS, *STATE_DICT_KINDS}


@pytest.mark.parametrize("options", [{"anchors": 0}, {}], ids=["inversion", "default"])
@pytest.mark.parametrize(("register", "values"), CASES)
def test_results_are_those_of_plain_autograd(register, values, options) -> None:
    x = sample(requires_grad=True)

    def hooked(module):
        register(module, **values)

    found = results(network(hooked, memory="invert", **options), x)
    expected = results(network(hooked, memory="store"), x)
    without = results(network(lambda _: None, memory="store"), x)
    assert_all_equal(found, expected)
    assert not torch.equal(expected[1], without[1])


@pytest.mark.slow
@pytest.mark.parametrize(("register", "values"), CASES)
def test_a_hook_under_compile_is_refused(register, values) -> None:
    net = network(lambda module: register(module, **values), depth=1)
    with pytest.raises(Unsupported, match="has hooks"):
        compiled(net)(sample(requires_grad=True))


@pytest.mark.slow
def test_hooks_of_the_state_dict_take_no_part() -> None:
    def register(module):
        for name in STATE_DICT_KINDS:
            getattr(module, name)(lambda *_: None)

    net, x = network(register, depth=2, anchors=0), sample(requires_grad=True)
    expected = results(network(register, depth=2, memory="store"), x)
    assert_all_equal(results(net, x), expected)
    y = compiled(net)(x)
    assert_all_equal([y.detach(), *grad(weighed(y), [x, *parameters(net)])], expected)
