"""Replace residual blocks by invertible ones with the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from invtorch import (
    InvertibleModule,
    InvertibleSequential,
    MomentumStep,
    ReversibleBlock,
)
from invtorch._torch import submodules_of
from invtorch.containers.sequential import MemoryArgument
from invtorch.convert.residual import Residual, rest_collected, state_of
from invtorch.convert.trial import (
    contains,
    copied,
    evaluating,
    outside_inference_mode,
    unchanged,
)
from invtorch.engine import GuardPolicy
from invtorch.planning import measure_memory

NO_SUM = (
    "returns no sum with its input, so it is no residual block (residual=False is for "
    "blocks that return f(x) alone)"
)
KINDS = ("momentum", "two_stream", "checkpoint")
Split = Callable[[nn.Module], tuple[nn.Module, nn.Module]]


class Report(NamedTuple):
    """How a converted model compares with the original on one input.

    Attributes:
        moved: The relative distance of the outputs, in evaluation mode.
        original: Bytes that the original keeps for the backward pass.
        converted: Bytes that the converted blocks keep.
        left: The blocks that were not converted, and why.
    """

    moved: float
    original: int
    converted: int
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"function moved by {self.moved:.1%} of the output",
            f"kept for the backward pass: {self.original / 2**20:.2f} MiB by the "
            f"original, {self.converted / 2**20:.2f} MiB converted",
        ]
        for name, why in self.left.items():
            lines.append(f"block {name} was left as it is: {why}")
        return "\n".join(lines)


class ReversibleBlocks(nn.Module):
    """Residual blocks that run as invertible layers; `reversible` makes one.

    It holds the blocks under their own names, so that the keys of the `state_dict` are
    those of the original. In a model that iterates over its blocks it stands for all
    of them: it is a sequence of one module. Attributes of the first block are found.
    Further arguments of a call are passed to all blocks.

    Blocks that change the shape of their input cannot be inverted, and blocks that do
    not return a sum with their input are no residual blocks. They are found at the
    first call, in which every block is evaluated once more in evaluation mode, with
    copies of its arguments. They run as they are. The same happens at the first call
    after a block or an option, such as `gamma`, was changed.

    A `TransformerEncoder` of PyTorch uses no nested tensors while its blocks are
    converted by momentum or in two streams.

    Examples:
        >>> from invtorch.convert import reversible
        >>> blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> net = reversible(blocks, residual=False)
        >>> [*net.state_dict()] == [*blocks.state_dict()]
        True
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.Module,
        kind: str,
        residual: bool,
        gamma: float,
        velocity: Callable[[Tensor], Tensor] | None,
        split: Split | None,
        output: int,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        named = (
            _submodules(blocks)
            if isinstance(blocks, nn.Module)
            else [(str(i), block) for i, block in enumerate(blocks)]
        )
        self.kind = kind
        self.residual = residual
        self.gamma = gamma
        self.split = split
        self.output = output
        self.options = options
        self.left: dict[str, str] = {}
        # lists, so that these modules are not registered: the keys would change
        self._place: list[tuple[nn.Module, str]] = []
        self._without_nested: list[nn.Module] = []
        self._segments: list[tuple[str, Any]] = []
        self._made_of: tuple[Any, ...] = ()
        for name, block in named:
            self._check_name(name)
            self.add_module(name, block)
        self.training = all(block.training for _, block in named)
        self.velocity = velocity  # behind the blocks: it may be a module
        self._original = [
            blocks
        ]  # from now on, attributes of the first block are found

    # --- as a module ------------------------------------------------------------------

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Any:
        """Apply all blocks.

        Returns:
            The state; if blocks return tuples, the tuple of the last block, with the
            other outputs detached.
        """
        if self.kind == "checkpoint" and getattr(x, "is_nested", False):
            return self._plain(x, context, named)  # in evaluation, by an encoder
        self._check_state(x)
        made_of = self._options_and_blocks()
        if made_of != self._made_of:
            how = (self.residual, self.gamma, self.velocity, self.split, self.output)
            check_options(self.kind, *how)
            self._segments = self._divided(x, context, named)
            self._made_of = made_of
        with rest_collected() as rest:
            for _, run in self._segments:
                x = run(x, *context, **named)
        if not rest:
            return x
        (others,) = rest
        place = self.output % (len(others) + 1)
        return (*others[:place], x, *others[place:])

    def report(self, x: Tensor, *context: Any, **named: Any) -> Report:
        """Compare with the original blocks on an input of the first block.

        Afterwards buffers, such as the statistics of batch normalization, the context
        and PyTorch's random numbers are as before.

        Args:
            x: The input of the first block.
            context: Further arguments of the blocks.
            named: Keyword arguments of the blocks.
        """

        def plain() -> Tensor:
            args, keywords = copied((context, named))
            return self._plain(x, args, keywords)

        def run() -> Tensor:
            args, keywords = copied((context, named))
            return self._state(self(x, *args, **keywords))

        with evaluating(self):
            converted, original = run(), plain()
        x = x.detach().requires_grad_()
        with unchanged(self):
            return Report(
                moved=_relative(converted - original, original),
                original=measure_memory(plain).live,
                converted=measure_memory(run).live,
                left=dict(self.left),
            )

    def restore(self) -> Any:
        """Put the original blocks back into the model, and return them.

        Their parameters are the trained ones. A block that was replaced in the
        converted blocks is replaced in the original ones too.
        """
        (original,) = self._original
        if isinstance(original, nn.Module):
            for name, block in self._blocks():
                original.add_module(name, block)
            original.training = self.training
        elif [*original] != [block for _, block in self._blocks()]:
            original = [block for _, block in self._blocks()]
        for parent, name in self._place:
            setattr(parent, name, original)
        encoder: Any
        for encoder in self._without_nested:
            encoder.use_nested_tensor = True
        return original

    def extra_repr(self) -> str:
        """Show the kind of the conversion, and the blocks that were left."""
        gamma = f", gamma={self.gamma}" if self.kind == "momentum" else ""
        left = f", left={[*self.left]}" if self.left else ""
        return f"kind={self.kind!r}{gamma}{left}"

    # --- as a sequence of one module --------------------------------------------------

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int | slice) -> Any:
        count = len(self._blocks())
        if isinstance(index, slice):
            if [*range(count)][index] == [*range(count)]:
                return self
        elif index in (0, -1):
            return self
        raise IndexError(
            f"the converted blocks are one module, but index {index} was requested: "
            f"call `restore()` to use single blocks"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # before the blocks are registered there is nothing to look at
            if name.startswith("_") or "_original" not in self.__dict__:
                raise
            return getattr(next(self.children()), name)

    # --- how it runs ------------------------------------------------------------------

    def _blocks(self) -> list[tuple[str, nn.Module]]:
        """Return the blocks by name. A velocity with parameters is a module too."""
        return [pair for pair in _submodules(self) if pair[0] != "velocity"]

    def _check_name(self, name: str) -> None:
        """Refuse a block whose name is that of an attribute."""
        if name in {"velocity", "_original", *self.__dict__} or hasattr(
            type(self), name
        ):
            raise ValueError(
                f"block {name!r} has the name of an attribute of ReversibleBlocks: "
                f"rename it"
            )

    def _check_state(self, x: Any) -> None:
        """Refuse what no invertible layer takes as its state."""
        if self.kind == "checkpoint":
            return
        what = f"the state of the converted blocks is a {type(x).__name__}"
        if not isinstance(x, Tensor):
            raise TypeError(f"{what}, but must be a tensor")
        if x.is_nested:
            raise TypeError(
                f"{what} that is nested, but must have one shape: set "
                f"`enable_nested_tensor=False`, or pad it"
            )
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(
                f"{what} of {x.dtype}, but must have real or complex numbers: convert "
                f"the blocks behind an embedding"
            )
        if self.kind == "two_stream" and x.ndim < 2:
            raise ValueError(
                f"the state has shape {tuple(x.shape)}, but kind='two_stream' needs a "
                f"batch axis and one more: use kind='momentum'"
            )

    def _options_and_blocks(self) -> tuple[Any, ...]:
        """Return what the segments are made of."""
        how = (self.residual, self.gamma, self.velocity, self.split, self.output)
        return (self.kind, *how, *self.options.items(), *self._blocks())

    def _divided(
        self, x: Tensor, context: tuple[Any, ...], named: dict[str, Any]
    ) -> list[tuple[str, Any]]:
        """Return the runs of blocks that keep the shape, and the others."""
        self.left = self._changing(x, context, named)
        segments: list[tuple[str, Any]] = []
        run: list[tuple[str, nn.Module]] = []
        for name, block in self._blocks():
            if name not in self.left:
                run.append((name, block))
                continue
            segments += self._run_of(run)
            run = []
            segments.append((name, _Plain(name, block, self.output)))
        segments += self._run_of(run)
        if len(self.left) == len(self._blocks()):
            name, why = next(iter(self.left.items()))
            raise ValueError(
                f"no block can be converted: block {name} {why}; give residual blocks "
                f"that keep the shape and dtype of their input"
            )
        return segments

    def _changing(
        self, x: Tensor, context: tuple[Any, ...], named: dict[str, Any]
    ) -> dict[str, str]:
        """Return the blocks that cannot be converted, and why."""
        if self.kind == "checkpoint":
            return {}
        changing = {}
        with evaluating(self), outside_inference_mode(self):
            args, keywords = copied((context, named))
            for name, block in self._blocks():
                y, summed = self._tried(name, block, x, args, keywords)
                if y.shape != x.shape:
                    shapes = f"{tuple(x.shape)} to {tuple(y.shape)}"
                    changing[name] = f"changes the shape from {shapes}"
                elif (y if self.residual else x + y).dtype != x.dtype:
                    changing[name] = f"changes the dtype from {x.dtype} to {y.dtype}"
                elif not summed:
                    changing[name] = NO_SUM
                x = y if self.residual or name in changing else x + y
        return changing

    def _tried(
        self,
        name: str,
        block: nn.Module,
        x: Tensor,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> tuple[Tensor, bool]:
        """Return what a block makes of a state, and whether the state is part of it."""
        # a copy, because a block that changes it in place is refused later
        leaf = x.detach().clone()
        if not self.residual or torch.is_inference_mode_enabled():
            return state_of(name, block(leaf, *args, **keywords), self.output), True
        with torch.enable_grad():
            given = leaf.requires_grad_().clone()
            y = state_of(name, block(given, *args, **keywords), self.output)
        return y.detach(), contains(y, leaf)

    def _run_of(self, run: list[tuple[str, nn.Module]]) -> list[tuple[str, Any]]:
        if not run:
            return []
        name = f"{run[0][0]} to {run[-1][0]}"
        made = (self.residual, self.output)
        if self.kind == "checkpoint":
            layers = [_Checkpointed(key, block, *made) for key, block in run]
            options = {**self.options, "memory": "checkpoint"}
            return [(name, InvertibleSequential(*layers, **options))]
        networks = [Residual(key, block, *made) for key, block in run]
        if self.kind == "momentum":
            steps = [MomentumStep(f, gamma=self.gamma) for f in networks]
            net = InvertibleSequential(*steps, **self.options)
            return [(name, _Momentum(net, self.velocity))]
        return [(name, _TwoStreams(self._two_streams(run, networks)))]

    def _two_streams(
        self, run: list[tuple[str, nn.Module]], networks: list[Residual]
    ) -> InvertibleSequential:
        if self.split is not None:
            pairs = [_pair_of(name, self.split(block)) for name, block in run]
        else:
            lone = networks[2 * (len(networks) // 2) :]
            pairs = [*zip(networks[::2], networks[1::2], strict=False)]
            pairs += [(f, _Zero()) for f in lone]
        blocks = [ReversibleBlock(f, g) for f, g in pairs]
        return InvertibleSequential(*blocks, **self.options)

    def _plain(
        self, x: Tensor, context: tuple[Any, ...], named: dict[str, Any]
    ) -> Tensor:
        """Apply the blocks as the original does."""
        for name, block in self._blocks():
            y = state_of(name, block(x, *context, **named), self.output)
            x = y if self.residual or name in self.left else x + y
        return x

    def _state(self, returned: Any) -> Tensor:
        state: Tensor = (
            returned[self.output] if isinstance(returned, tuple) else returned
        )
        return state


class _Plain:
    """A block that runs as it is."""

    def __init__(self, name: str, block: nn.Module, output: int) -> None:
        self.name, self.block, self.output = name, block, output

    def __call__(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        return state_of(self.name, self.block(x, *context, **named), self.output)


class _Checkpointed(InvertibleModule):
    """A block whose input is kept, so that it needs no inverse."""

    def __init__(self, name: str, block: nn.Module, residual: bool, output: int):
        super().__init__()
        self.name, self.block = name, block
        self.residual, self.output = residual, output

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        y = state_of(self.name, self.block(x, *context, **named), self.output)
        return y if self.residual else x + y

    def inverse(self, y: Tensor, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError(f"block {self.name} has no inverse")


class _Momentum:
    """Blocks that move a state by a velocity."""

    def __init__(
        self, net: InvertibleSequential, velocity: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.net, self.velocity = net, velocity

    def __call__(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        v = torch.zeros_like(x) if self.velocity is None else self.velocity(x)
        x, _ = self.net((x, v), *context, **named)
        return x


class _TwoStreams:
    """Blocks that shift two copies of the state in turns; the result is their mean."""

    def __init__(self, net: InvertibleSequential) -> None:
        self.net = net

    def __call__(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        y = self.net(torch.cat([x, x], 1), *context, **named)
        y1, y2 = y.chunk(2, 1)
        mean: Tensor = (y1 + y2) / 2
        return mean


class _Zero(nn.Module):
    """The partner of a block that has none."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros_like(x)


def _submodules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the direct submodules by name, the same one as often as it is there."""
    parts = submodules_of(module).items()
    return [(name, part) for name, part in parts if part is not None]


def _pair_of(name: str, pair: Any) -> tuple[nn.Module, nn.Module]:
    """Check what `split` returned for a block."""
    modules = [*pair] if isinstance(pair, (tuple, list)) else []
    if len(modules) != 2 or not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError(
            f"split returned {type(pair).__name__} for block {name}, but must return "
            f"two modules, f and g"
        )
    return modules[0], modules[1]


def _relative(difference: Tensor, original: Tensor) -> float:
    """Return how large a difference is; 0 if there is none."""
    size = float(difference.norm())
    return size / float(original.norm()) if size else size


def check_options(
    kind: str,
    residual: bool,
    gamma: float,
    velocity: Callable[[Tensor], Tensor] | None,
    split: Split | None,
    output: int,
) -> None:
    """Check the options of a conversion.

    Raises:
        TypeError: If an option is of another type.
        ValueError: If the kind is unknown, `gamma` is not between 0 and 1, or
            `velocity` or `split` has no effect.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but must be one of {KINDS}")
    _check_type("residual", residual, bool)
    _check_type("output", output, int)
    _check_type("gamma", gamma, int, float)
    if not 0 < gamma < 1:
        raise ValueError(f"gamma is {gamma}, but must be between 0 and 1")
    _check_function("velocity", velocity, kind, needs="momentum")
    _check_function("split", split, kind, needs="two_stream")


def _check_type(name: str, value: Any, *types: type) -> None:
    if not isinstance(value, types):
        kind = "a number" if len(types) > 1 else f"of type {types[0].__name__}"
        raise TypeError(f"{name} is {value!r}, but must be {kind}")


def _check_function(name: str, function: Any, kind: str, needs: str) -> None:
    if function is None:
        return
    if kind != needs:
        raise ValueError(f"{name} is given, but has no effect with kind={kind!r}")
    if not callable(function):
        raise TypeError(f"{name} is {function!r}, but must be a function")


def reversible(
    model: nn.Module | Sequence[nn.Module],
    path: str | None = None,
    *,
    kind: str = "momentum",
    residual: bool = True,
    gamma: float = 0.9,
    velocity: Callable[[Tensor], Tensor] | None = None,
    split: Split | None = None,
    output: int = 0,
    memory: MemoryArgument = "invert",
    anchors: Any = 8,
    guard: GuardPolicy | None = "raise",
    state_dtype: torch.dtype | None = None,
) -> ReversibleBlocks:
    r"""Run the residual blocks of a model as invertible layers, with its parameters.

    A residual block $x \mapsto x + f(x)$ has no inverse in general. Three kinds of
    layers use the same $f$:

    * `"momentum"`: $v' = \gamma v + (1 - \gamma) f(x)$, $x' = x + v'$. For
      $\gamma \to 0$ this is the original model. The inverse divides by $\gamma$, so
      small $\gamma$ needs anchors; the guard raises where they do not suffice.
    * `"two_stream"`: two copies of the state shift each other,
      $y_1 = x_1 + f(x_2)$ and $y_2 = x_2 + g(y_1)$, and the result is their mean.
      $f$ and $g$ are consecutive blocks, or what `split` returns for each block.
      With dropout in training, use `"momentum"`: see `ReversibleBlock`.
    * `"checkpoint"`: every block is evaluated again in the backward pass. The function
      does not change, but one state is kept for each block.

    The first two change the function that the model computes: `report` says by how
    much. A model that was trained before needs some training afterwards.

    Args:
        model: The model; or its blocks, as a list, an `nn.ModuleList` or an
            `nn.Sequential`.
        path: Where the blocks are in the model, such as `"encoder.layers"`. They are
            replaced there. Without a path the model itself must be the blocks.
        kind: One of the kinds above.
        residual: Whether the blocks return $x + f(x)$, and not $f(x)$ alone. Blocks
            that do not are found at the first call, and run as they are.
        gamma: The factor of the velocity, between 0 and 1.
        velocity: Computes the first velocity from the first state; zeros by default.
            If it is a module, its parameters are those of the converted blocks too, and
            in the `state_dict` behind theirs.
        split: Returns $f$ and $g$ of a block, for `"two_stream"`.
        output: Which of the outputs is the state, if the blocks return tuples. The
            others are returned detached.
        memory: As for `InvertibleSequential`.
        anchors: As for `InvertibleSequential`.
        guard: As for `InvertibleSequential`.
        state_dtype: As for `InvertibleSequential`.

    Returns:
        What replaces the blocks. `restore()` undoes it.

    Raises:
        TypeError: If the model is neither a module nor a sequence of them, or an option
            is of another type.
        ValueError: If an option is unknown or has no effect, there are no blocks, one
            has the name of an attribute, or none of them can be converted (at the
            first call).
        AttributeError: If nothing is at the path.

    Examples:
        >>> from invtorch.convert import reversible
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        >>> blocks = reversible(model, "layers")
        >>> x = torch.randn(2, 5, 8)
        >>> model(x).sum().backward()
        >>> blocks.report(x).converted < blocks.report(x).original
        True
        >>> _ = blocks.restore()

    References:
        Sander et al., *Momentum residual neural networks*, 2021. arXiv:2102.07870

        Mangalam et al., *Reversible vision transformers*, 2022. arXiv:2302.04869
    """
    check_options(kind, residual, gamma, velocity, split, output)
    blocks, place = _blocks_of(model, path)
    options = {
        "memory": memory,
        "anchors": anchors,
        "guard": guard,
        "state_dtype": state_dtype,
    }
    InvertibleSequential(**options)  # checks the options now, not at the first call
    made = ReversibleBlocks(
        blocks, kind, residual, gamma, velocity, split, output, options
    )
    if place is not None:
        setattr(*place, made)
        made._place.append(place)
        encoder: Any = place[0]
        if kind != "checkpoint" and getattr(encoder, "use_nested_tensor", False):
            # in evaluation it would pass a state that has no shape
            encoder.use_nested_tensor = False
            made._without_nested.append(encoder)
    return made


def _blocks_of(
    model: Any, path: str | None
) -> tuple[Any, tuple[nn.Module, str] | None]:
    """Return the blocks, and where they are in the model."""
    place = None
    blocks = model
    if path is not None:
        *parents, name = path.split(".")
        parent = model.get_submodule(".".join(parents))
        blocks, place = parent.get_submodule(name), (parent, name)
    if isinstance(blocks, ReversibleBlocks):
        raise ValueError(
            "the blocks are converted already: call `restore()` first, or "
            "set their options, such as `gamma`"
        )
    listed = [*blocks.children()] if isinstance(blocks, nn.Module) else [*blocks]
    where = f"at {path!r}" if path else "in the model"
    if not listed:
        raise ValueError(
            f"there are no blocks {where}: give the path of a list of them"
        )
    others = [type(b).__name__ for b in listed if not isinstance(b, nn.Module)]
    if others:
        raise TypeError(
            f"a block {where} is a {others[0]}, but all must be an nn.Module"
        )
    if isinstance(blocks, nn.Module) and not isinstance(
        blocks, (nn.ModuleList, nn.Sequential)
    ):
        raise TypeError(
            f"what is {where} is a {type(blocks).__name__}, but must be a ModuleList "
            f"or a Sequential: give the path of the blocks, such as 'encoder.layers'"
        )
    return blocks, place
