"""`OrthogonalCoupling` is the paper's layer: change basis, couple, change back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from invtorch import (
    AdditiveCoupling,
    Conjugation,
    Householder1x1,
    InvertibleSequential,
    OrthogonalCoupling,
)
from invtorch.linalg import householder_product
from tests.parts import Conditioner
from tests.strategies import states, weighed
from tests.tolerances import assert_all_equal, assert_equal


@given(st.integers(1, 6), st.data())
def test_a_product_of_reflections_is_orthogonal(channels, data) -> None:
    vectors = torch.randn(
        data.draw(st.integers(1, channels)), channels, dtype=torch.float64
    )
    U = householder_product(vectors)
    identity = torch.eye(channels, dtype=torch.float64)
    assert_equal(U.T @ U, identity)
    product = identity
    for v in vectors:
        product = product @ (identity - 2 * torch.outer(v, v) / v.dot(v))
    assert_equal(U, product)


@given(states())
def test_both_forms_are_the_same_map_with_the_same_gradients(drawn) -> None:
    x, context, dims = drawn
    channels = x.shape[1]
    conditioner = Conditioner(channels // 2, -(-channels // 2), dims)
    algebraic = OrthogonalCoupling(conditioner, channels=channels, reflections=2)
    basis = Householder1x1(channels, reflections=2)
    basis.vectors = algebraic.vectors
    conjugated = Conjugation(basis, AdditiveCoupling(conditioner))
    algebraic.double()
    x.requires_grad_()
    inputs = [x, algebraic.vectors, *conditioner.parameters()]

    def result(layer, memory):
        net = InvertibleSequential(*[layer] * 10, memory=memory, anchors=0)
        y = net(x, context)
        return [y, net.inverse(x, context), *torch.autograd.grad(weighed(y), inputs)]

    expected = result(conjugated, "store")
    assert_all_equal(result(algebraic, "store"), expected)
    assert_all_equal(result(algebraic, "invert"), expected)


def test_the_shift_never_touches_what_conditions_it() -> None:
    layer = OrthogonalCoupling(Conditioner(3, 3), channels=6).double()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    U1 = householder_product(layer.vectors)[:3]
    project = torch.einsum
    before = project("oc,bchw->bohw", U1, x)
    assert_equal(project("oc,bchw->bohw", U1, layer(x)), before)
