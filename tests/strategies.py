"""What hypothesis draws: the structure of a stack, and a seed for its values."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from invtorch import InvertibleModule, InvertibleSequential
from invtorch.base import MEMORY
from tests.registry import MAKERS

names = st.sampled_from(sorted(MAKERS))
directions = st.sampled_from(["forward", "inverse"])
anchors = st.sampled_from([0, 3, 8])


@dataclass
class Example:
    """A module with an input state and a context to evaluate it on, in float64."""

    module: InvertibleModule
    x: Tensor
    context: tuple[Tensor, ...]

    @property
    def inputs(self) -> list[Tensor]:
        """Everything that a gradient may be asked for."""
        leaves = (self.x, *self.context, *self.module.parameters())
        return [t for t in leaves if t.requires_grad]

    def gradients(self, memory: str, direction: str = "forward") -> tuple[Tensor, ...]:
        """Differentiate a scalar that weighs every output differently."""
        self.module.memory = memory
        y = getattr(self.module, direction)(self.x, *self.context)
        return torch.autograd.grad(weighed(y), self.inputs, allow_unused=True)


def weighed(y: Tensor) -> Tensor:
    """Return a nonlinear scalar function of a tensor, different in every element."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    return (y * weights).sin().sum()


@st.composite
def states(draw: st.DrawFn, channels: int | None = None) -> tuple[Tensor, Tensor, int]:
    """Draw a state, a context for it, and the number of spatial axes."""
    dims = draw(st.integers(1, 3))
    channels = channels or draw(st.integers(2, 5))
    space = draw(st.lists(st.integers(3, 5), min_size=dims, max_size=dims))
    batch = draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (batch, channels, *space)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    context = torch.randn((batch, 1, *space), generator=generator, dtype=torch.float64)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return x, context, dims


@st.composite
def modules(draw: st.DrawFn) -> Example:
    """Draw one shipped module and a state for it."""
    x, context, dims = draw(states())
    module = MAKERS[draw(names)](x.shape[1], dims).double()
    return Example(module, x, (context,))


@st.composite
def stacks(draw: st.DrawFn, max_layers: int = 6) -> Example:
    """Draw a mixed, nested stack with shared, frozen and differently kept blocks."""
    x, context, dims = draw(states())
    count = draw(st.integers(1, max_layers))
    members = [MAKERS[draw(names)](x.shape[1], dims).double() for _ in range(count)]
    for module in members:
        module.requires_grad_(draw(st.integers(0, 3)) > 0)
        module.memory = draw(st.sampled_from([None, None, *MEMORY]))
    if draw(st.booleans()):
        members.append(members[0])
    if draw(st.booleans()):
        members = [InvertibleSequential(*members[:2]), *members[2:]]
    if draw(st.booleans()):
        members = [members[0].inv, *members[1:]]
    x.requires_grad_(draw(st.booleans()))
    context.requires_grad_(draw(st.booleans()))
    contexts = (context,) * draw(st.integers(0, 2))
    example = Example(
        InvertibleSequential(*members, anchors=draw(anchors)), x, contexts
    )
    if not any(p.requires_grad for p in example.module.parameters()):
        x.requires_grad_()
    return example
