"""Tensors of a subclass are compared by the plain tensors underneath."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch import AdditiveCoupling, DriftError, InvertibleSequential
from invtorch._torch import plain_tensors
from tests.compilation import COMPILING, compiled
from tests.devices import ON_THE_CPU
from tests.parts import Conditioner
from tests.subclasses import KINDS, Transparent, Wrapper

pytestmark = [*COMPILING, ON_THE_CPU]


class Wrong(AdditiveCoupling):
    """Its inverse takes back only a part of what was added."""

    replay = None
    share = 1.0

    def inverse(self, y, *context):
        x = super().inverse(y, *context)
        return y + self.share * (x - y)


kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def network(share: float, dtype: torch.dtype, **options) -> InvertibleSequential:
    layers = [Wrong(Conditioner(2, 2)) for _ in range(4)]
    layers[2].share = share
    return InvertibleSequential(*layers, anchors=0, **options).to(dtype)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(share=st.floats(0.0, 0.3), seed=st.integers(0, 2**32 - 1))
def test_a_wrong_inverse_is_noticed_in_any_kind_of_tensor(
    kind, dtype, share, seed
) -> None:
    torch.manual_seed(seed)
    net = network(share, dtype)
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.bias, 2.0)
    x = kind(torch.randn(2, 4, 5, 5, dtype=dtype))
    with pytest.raises(DriftError, match=r"inverting layer [12] \(Wrong\) is off by"):
        net(x).square().sum().backward()


@kinds
@given(seed=st.integers(0, 2**32 - 1))
def test_gradients_are_those_of_the_plain_tensor(kind, seed) -> None:
    torch.manual_seed(seed)
    net, x = network(1.0, torch.float64), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    found = torch.autograd.grad(net(kind(x)).square().sum(), [*net.parameters()])
    net.memory = "store"
    expected = torch.autograd.grad(net(x).square().sum(), [*net.parameters()])
    for one, other in zip(found, expected, strict=True):
        for part in plain_tensors(one):
            torch.testing.assert_close(part, other)


def test_a_wrapper_whose_values_are_not_known_is_refused() -> None:
    net, x = network(1.0, torch.bfloat16), torch.randn(2, 4, 5, 5, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="a state is a Wrapper, whose values cannot be"):
        net(Wrapper(x))
    net.memory = "store"
    net(Wrapper(x))


@pytest.mark.slow
def test_a_wrong_inverse_is_noticed_when_compiled() -> None:
    x = Transparent(torch.randn(2, 4, 5, 5, dtype=torch.bfloat16))
    loss = compiled(network(0.0, torch.bfloat16))(x).square().sum()
    with pytest.raises(RuntimeError, match=r"is off by more|did not repeat itself"):
        loss.backward()
