"""Functional calls, and the transforms of `torch.func`, for every layer."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from invtorch import AdditiveCoupling, HaarDownsample, Logit
from invtorch.flows import Dequantize
from invtorch.grid import snap
from invtorch.testing.compare import as_tuple
from tests.registry import FIXED, MAKERS, PAIR_MAKERS
from tests.stacks import both, sample, stack
from tests.strategies import Example, costly, network_seeds, weighed
from tests.tolerances import assert_all_equal


def test_functional_call_with_the_backward_outside(anchors) -> None:
    net, x = stack(anchors), sample()

    def gradients():
        torch.manual_seed(0)
        others = {k: torch.randn_like(v) / 3 for k, v in net.named_parameters()}
        leaves = [v.requires_grad_() for v in others.values()]
        doubled = {k: v * 2 for k, v in others.items()}
        y = torch.func.functional_call(net, doubled, (x,))
        return torch.autograd.grad(weighed(y), leaves)

    assert_all_equal(*both(net, gradients))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_func_transforms(anchors) -> None:
    net, x = stack(anchors), sample()
    tangent = sample()
    values = {k: v.detach() for k, v in net.named_parameters()}

    def loss(values, x):
        return weighed(torch.func.functional_call(net, values, (x[None],)))

    def transforms():
        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
        jacobian = torch.func.jacrev(net)(x[:1])
        return [*per_sample.values(), jacobian, *torch.func.jvp(net, (x,), (tangent,))]

    assert_all_equal(*both(net, transforms))


NAMES = [*sorted({**MAKERS, **PAIR_MAKERS, **FIXED}), "grid", "padded"]
GRID = 2.0**-10
every_layer = pytest.mark.parametrize("name", NAMES)


@st.composite
def examples(draw: st.DrawFn) -> Callable[[str], Example]:
    """Return what makes a layer, perhaps frozen, by its name."""
    seed, frozen = draw(network_seeds), draw(st.booleans())

    def make(name: str) -> Example:
        torch.manual_seed(seed)
        x, context = torch.randn(2, 2, 4, 4), torch.randn(2, 1, 4, 4)
        if name in FIXED:
            layer, shape = FIXED[name]
            module, x, context = layer(), torch.rand(shape), None
        elif name == "padded":
            module, x, context = HaarDownsample(size=(3, 4)), x[..., :3, :], None
        elif name == "grid":
            layer = AdditiveCoupling(torch.nn.Conv2d(1, 1, 1), grid=GRID)
            module, x, context = layer, snap(x, GRID), None
        else:
            module = {**MAKERS, **PAIR_MAKERS}[name](2, 2)
        contexts = () if context is None else (context.double(),)
        state = (x.double(), x.double()) if name in PAIR_MAKERS else x.double()
        return Example(module.double().requires_grad_(not frozen), state, contexts)

    return make


directions = st.sampled_from(["forward_and_log_det", "inverse_and_log_det"])


def call_of(example: Example, direction: str):
    """Return a function of the tensors of a state and the context, and these."""

    def call(*tensors):
        state, context = tensors[:count], tensors[count:]
        state = state if isinstance(example.x, tuple) else state[0]
        y, log_det = getattr(example.module, direction)(state, *context)
        return *as_tuple(y), log_det

    x, count = example.x, len(as_tuple(example.x))
    if direction.startswith("inverse"):
        with torch.no_grad():
            x = example.module(x, *example.context)
        count = len(as_tuple(x))
        example.x = x
    return call, (*as_tuple(x), *example.context)


@every_layer
@given(examples(), directions)
@costly(2)
def test_vmap_of_every_layer(name, make, direction) -> None:
    call, inputs = call_of(make(name), direction)

    def one(*tensors):
        return call(*(t[None] for t in tensors))

    found = torch.func.vmap(one)(*inputs)
    samples = [one(*tensors) for tensors in zip(*inputs, strict=True)]
    assert_all_equal(found, [torch.stack(ts) for ts in zip(*samples, strict=True)])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@every_layer
@given(examples(), directions)
@costly(2)
def test_forward_mode_of_every_layer(name, make, direction) -> None:
    call, inputs = call_of(make(name), direction)
    tangents = tuple(map(torch.randn_like, inputs))
    _, expected = torch.autograd.functional.jvp(call, inputs, tangents)
    assert_all_equal(torch.func.jvp(call, inputs, tangents)[1], expected)
    with forward_ad.dual_level():
        outputs = call(*map(forward_ad.make_dual, inputs, tangents))
        found = [forward_ad.unpack_dual(y).tangent for y in outputs]
    zeros = zip(found, expected, strict=True)
    found = [torch.zeros_like(b) if a is None else a for a, b in zeros]
    assert_all_equal(found, expected)


@pytest.mark.parametrize(
    ("layer", "good", "bad", "error"),
    [
        (Logit(0.0), 0.5, -0.5, RuntimeError),
        (Dequantize(9), 0.0, -1.0, ValueError),
        (AdditiveCoupling(torch.nn.Identity(), grid=1.0), 1.0, 0.5, RuntimeError),
    ],
)
def test_one_sample_of_vmap_that_has_no_image_is_refused(layer, good, bad, error):
    x = torch.tensor([good, bad]).expand(1, 2, 2).mT
    vmapped = torch.func.vmap(layer, in_dims=1, randomness="different")
    vmapped(x[:, :1])
    with pytest.raises(error, match=r"between 0 and|from 0 to|not on the grid"):
        vmapped(x)
