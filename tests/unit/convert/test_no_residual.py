"""Blocks that return no sum with their input are found, and others are not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from invtorch.convert import reversible
from tests.tolerances import assert_equal

CHANNELS = 4


class Sum(nn.Module):
    """A residual block: before and after the sum, and how the sum is made, vary."""

    def __init__(self, network: nn.Module, before: nn.Module, after: nn.Module):
        super().__init__()
        self.network, self.before, self.after = network, before, after
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.scale * self.network(self.before(x)) + x)


class InTuple(nn.Module):
    """A block that returns a tuple, and its result second."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), self.block(x)


class Attention(nn.Module):
    """Attention without the sum around it."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value)


class Recurrent(nn.Module):
    """A recurrent network without the sum around it."""

    def __init__(self):
        super().__init__()
        self.network = nn.GRU(CHANNELS, CHANNELS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]


class Constant(nn.Module):
    """A block that ignores its input."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


class Mixer(nn.Module):
    """A convolution along the sequence."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.mT).mT


def linear() -> nn.Module:
    return nn.Linear(CHANNELS, CHANNELS)


def norm() -> nn.Module:
    return nn.LayerNorm(CHANNELS)


NETWORKS = st.sampled_from([linear, Mixer, Attention, Recurrent, Constant])
ELEMENTWISE = st.sampled_from([nn.Identity, norm, nn.ReLU, nn.Dropout, nn.GELU])


def _sum(network, before, after):
    return lambda: Sum(network(), before(), after())


def _chain(*parts):
    return lambda: nn.Sequential(*(part() for part in parts))


def _encoder():
    return nn.TransformerEncoderLayer(CHANNELS, 2, 8, batch_first=True)


SUMS = st.one_of(
    st.builds(_sum, NETWORKS, ELEMENTWISE, ELEMENTWISE),
    st.builds(_chain, ELEMENTWISE, st.builds(_sum, NETWORKS, ELEMENTWISE, ELEMENTWISE)),
    st.just(_encoder),
)
ALONE = st.one_of(
    st.builds(_chain, ELEMENTWISE, NETWORKS, ELEMENTWISE),
    # a sum, and all of it mixed again
    st.builds(_chain, st.builds(_sum, NETWORKS, ELEMENTWISE, ELEMENTWISE), NETWORKS),
)
MODES = st.sampled_from([torch.enable_grad, torch.no_grad, torch.inference_mode])


@given(
    kinds=st.lists(st.booleans(), min_size=1, max_size=4),
    data=st.data(),
    kind=st.sampled_from(["momentum", "two_stream"]),
    mode=MODES,
    in_tuple=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_blocks_without_the_sum_are_left_as_they_are(
    kinds, data, kind, mode, in_tuple, seed
):
    """`report` names them, and no block with the sum; all of them alone are refused."""
    torch.manual_seed(seed)
    blocks = [data.draw(SUMS if is_sum else ALONE)() for is_sum in kinds]
    if in_tuple:
        blocks = [InTuple(block) for block in blocks]
    net = reversible(blocks, kind=kind, output=1 if in_tuple else 0).eval()
    x = torch.randn(2, 5, CHANNELS)
    if not any(kinds):
        with pytest.raises(ValueError, match="block 0 returns no sum with its input"):
            net(x)
        return
    with mode():
        net(x)
    wanted = {str(i) for i, is_sum in enumerate(kinds) if not is_sum}
    assert set(net.left) == wanted
    report = str(net.report(x))
    for name in wanted:
        assert f"block {name} was left as it is: returns no sum" in report


@given(data=st.data(), seed=st.integers(0, 2**31))
def test_a_block_that_is_left_computes_what_it_did(data, seed):
    """Between two converted blocks, with values and gradients of the block itself."""
    torch.manual_seed(seed)
    block = data.draw(ALONE)()
    alone = reversible([Sum(linear(), norm(), nn.Identity())]).eval()
    net = reversible([*alone.children(), block]).eval()
    x = torch.randn(2, 5, CHANNELS)
    assert_equal(net(x), block(alone(x)))


@pytest.mark.parametrize("kind", ["momentum", "two_stream"])
def test_networks_without_a_sum_are_taken_as_such(kind):
    """`residual=False` is for blocks that return f(x) alone: none is left."""
    net = reversible([linear(), linear()], kind=kind, residual=False)
    net(torch.randn(2, 5, CHANNELS))
    assert net.left == {}


def test_a_function_that_cannot_be_looked_into_counts_as_a_sum():
    """A custom function of autograd may hold the sum inside."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    class Block(nn.Module):
        def forward(self, x):
            return Doubled.apply(x)

    net = reversible([Block()])
    net(torch.randn(2, 5, CHANNELS))
    assert net.left == {}


class Counting(nn.Module):
    """A block that adds to a buffer without `no_grad`, as one for inference may."""

    def __init__(self):
        super().__init__()
        self.network = linear()
        self.register_buffer("total", torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        self.total += self.network(x).mean(dim=(0, 1))
        return x + self.network(x)


@given(
    mode=st.sampled_from([torch.no_grad, torch.inference_mode]),
    made_in_inference_mode=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_search_leaves_no_graph_behind(mode, made_in_inference_mode, seed):
    """Buffers have the values of one evaluation, and need no gradient."""
    torch.manual_seed(seed)
    with torch.inference_mode(made_in_inference_mode):
        block = Counting()
    net = reversible([block])
    x = torch.randn(2, 5, CHANNELS)
    with mode():
        if made_in_inference_mode and mode is torch.no_grad:
            return  # PyTorch refuses to change such a buffer
        net(x)
    assert not block.total.requires_grad
    assert_equal(block.total, block.network(x).mean(dim=(0, 1)))
