"""What hypothesis draws: the structure of a stack, and a seed for its values."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from invtorch import InvertibleModule, InvertibleSequential
from invtorch.module import MEMORY
from tests.registry import MAKERS, MULTIPLES, PAIR_MAKERS
from tests.tolerances import SINGLE, Gradients, assert_same_gradients

names = st.sampled_from(sorted(MAKERS | PAIR_MAKERS))
directions = st.sampled_from(["forward", "inverse"])
anchors = st.sampled_from([0, 3, 8])
CI_EXAMPLES = 25  # of the profile "ci"
DEEP = 12  # members of a deep stack: more than there are anchors
memories = st.sampled_from(["invert", "checkpoint"])
network_seeds = st.integers(0, 2**32 - 1)


def costly(examples: int) -> settings:
    """Draw a few examples that take long: `examples` of them in the profile "ci".

    Other profiles draw as many more or fewer of them as they do of all others. None is
    made smaller: a seed that fails is as good as any.
    """
    count = examples * settings.default.max_examples / CI_EXAMPLES
    return settings(max_examples=max(1, round(count)), phases=[Phase.generate])


@dataclass
class Example:
    """A module with an input state and a context to evaluate it on, in float64."""

    module: InvertibleModule
    x: Tensor | tuple[Tensor, ...]
    context: tuple[Tensor, ...]

    @property
    def inputs(self) -> list[Tensor]:
        """Everything that a gradient may be asked for."""
        state = self.x if isinstance(self.x, tuple) else (self.x,)
        leaves = (*state, *self.context, *self.module.parameters())
        return [t for t in leaves if t.requires_grad]

    def gradients(self, memory: str, direction: str = "forward") -> tuple[Tensor, ...]:
        """Differentiate a scalar that weighs every output differently."""
        self.module.memory = memory
        y = getattr(self.module, direction)(self.x, *self.context)
        return torch.autograd.grad(weighed(y), self.inputs, allow_unused=True)

    def in_single(self) -> "Example":
        """Return a copy in single precision, whose guard allows what it loses."""
        example = copy.deepcopy(self)
        for tensor in (*example.module.parameters(), *example.module.buffers()):
            tensor.grad = None
            tensor.data = tensor.data.to(SINGLE.get(tensor.dtype, tensor.dtype))
        for module in example.module.modules():
            if isinstance(module, InvertibleSequential):
                module.guard = None
        state = self.x if isinstance(self.x, tuple) else (self.x,)
        x, example.context = (
            tuple(map(single, tensors)) for tensors in (state, self.context)
        )
        example.x = x if isinstance(self.x, tuple) else x[0]
        return example


def single(tensor: Tensor) -> Tensor:
    """Return a leaf in single precision that needs a gradient if `tensor` does."""
    leaf = tensor.detach().to(SINGLE[tensor.dtype])
    return leaf.requires_grad_(tensor.requires_grad)


def assert_as_plain(
    example: Example, memory: str, gradients: Callable[[Example, str], Gradients]
) -> None:
    """Assert that a strategy gives the gradients of plain autograd."""

    def both(example: Example) -> tuple[Gradients, Gradients]:
        expected = gradients(example, "store")
        return gradients(example, memory), expected

    assert_same_gradients(*both(example), lambda: both(example.in_single()))


def weighed(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return a nonlinear scalar function of a state, different in every element."""
    if isinstance(y, tuple):
        return sum(weighed(part * (1 + i)) for i, part in enumerate(y))
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=y.device)
    return (y * weights.view(y.shape)).sin().sum()


@st.composite
def states(
    draw: st.DrawFn, channels: int | None = None, multiple: int = 1
) -> tuple[Tensor, Tensor, int]:
    """Draw a state, a context for it, and the number of spatial axes."""
    dims = draw(st.integers(1, 3))
    channels = channels or draw(st.integers(2, 5))
    sizes = (
        st.integers(3, 5)
        if multiple == 1
        else st.sampled_from(range(multiple, 5, multiple))
    )
    space = draw(st.lists(sizes, min_size=dims, max_size=dims))
    batch = draw(st.integers(1, 2))
    generator = torch.Generator(torch.get_default_device())
    generator.manual_seed(draw(st.integers(0, 2**31)))
    shape = (batch, channels, *space)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    context = torch.randn((batch, 1, *space), generator=generator, dtype=torch.float64)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return x, context, dims


def multiple_of(drawn: list[str]) -> int:
    """Return what the sizes of space must be multiples of."""
    return max(MULTIPLES.get(name, 1) for name in drawn)


@st.composite
def modules(draw: st.DrawFn) -> Example:
    """Draw one shipped module and a state for it."""
    name = draw(names)
    x, context, dims = draw(states(multiple=multiple_of([name])))
    module = (MAKERS | PAIR_MAKERS)[name](x.shape[1], dims).double()
    state = (x, torch.randn_like(x)) if name in PAIR_MAKERS else x
    return Example(module, state, (context,))


@st.composite
def kinds(draw: st.DrawFn, pairs: bool, max_layers: int) -> list[str]:
    """Draw what the members of a stack are, some of them deeper than the anchors."""
    makers = PAIR_MAKERS if pairs else MAKERS
    name = st.sampled_from(sorted(makers))
    drawn = draw(st.lists(name, min_size=1, max_size=max_layers))
    times = draw(st.sampled_from([1, 1, DEEP // len(drawn)]))
    return drawn * times


@st.composite
def stacks(draw: st.DrawFn, max_layers: int = 6, tuples: bool = True) -> Example:
    """Draw a mixed, nested stack with shared, frozen and differently kept blocks."""
    pairs = tuples and draw(st.integers(0, 3)) == 3
    drawn = draw(kinds(pairs, max_layers))
    x, context, dims = draw(states(multiple=multiple_of(drawn)))
    makers = PAIR_MAKERS if pairs else MAKERS
    members = [makers[name](x.shape[1], dims).double() for name in drawn]
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
    state = (x, torch.randn_like(x).requires_grad_(draw(st.booleans())))
    context.requires_grad_(draw(st.booleans()))
    contexts = (context,) * draw(st.integers(0, 2))
    module = InvertibleSequential(*members, anchors=draw(anchors))
    example = Example(module, state if pairs else x, contexts)
    if not any(p.requires_grad for p in example.module.parameters()):
        x.requires_grad_()
    return example
