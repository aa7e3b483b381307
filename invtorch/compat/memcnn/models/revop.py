"""The wrapper of memcnn, which saves memory, and its helpers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from invtorch import InvertibleModule, InvertibleSequential
from invtorch._checks import check_module
from invtorch.compat.memcnn.models.additive import AdditiveCoupling
from invtorch.compat.memcnn.models.affine import AffineCoupling

__all__ = [
    "InvertibleModuleWrapper",
    "ReversibleBlock",
    "create_coupling",
    "get_device_states",
    "is_invertible_module",
    "set_device_states",
]
Adapter = Callable[[nn.Module], nn.Module] | None


class _Layer(InvertibleModule):
    """A module with `forward` and `inverse` of several tensors, as a layer."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return self.fn(*_tuple(x))

    def inverse(self, y: Any) -> Any:
        return self.fn.inverse(*_tuple(y))  # type: ignore[operator]


class InvertibleModuleWrapper(nn.Module):
    """Call an invertible module such that its input is rebuilt in the backward pass.

    Args:
        fn: A module with methods `forward` and `inverse`, of one or several tensors.
        keep_input: Whether the input of `forward` is kept instead.
        keep_input_inverse: Whether the input of `inverse` is kept instead.
        num_bwd_passes: No effect: any number is possible.
        disable: Whether plain autograd is used, which keeps all activations.
        preserve_rng_state: No effect: random numbers are always restored.

    Raises:
        TypeError: If `fn` is not an `nn.Module`, or it is called without a tensor.

    Examples:
        >>> import invtorch.compat.memcnn as memcnn
        >>> coupling = memcnn.AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1))
        >>> layer = memcnn.InvertibleModuleWrapper(coupling)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> layer(x).sum().backward()
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        fn: nn.Module,
        keep_input: bool = False,
        keep_input_inverse: bool = False,
        num_bwd_passes: int = 1,
        disable: bool = False,
        preserve_rng_state: bool = False,
    ) -> None:
        super().__init__()
        check_module("fn", fn)
        self.disable = disable
        self.keep_input = keep_input
        self.keep_input_inverse = keep_input_inverse
        self.num_bwd_passes = num_bwd_passes
        self.preserve_rng_state = preserve_rng_state
        self._fn = fn
        # a list, so that the container is not registered: the keys are `_fn.…`
        self._net = [InvertibleSequential(_Layer(fn))]

    def forward(self, *xin: Tensor) -> Any:
        """Apply the module."""
        return _single(self._container(self.keep_input)(_state(xin)))

    def inverse(self, *yin: Tensor) -> Any:
        """Apply the inverse of the module."""
        return _single(self._container(self.keep_input_inverse).inverse(_state(yin)))

    def _container(self, keep: bool) -> InvertibleSequential:
        (net,) = self._net
        net[0].fn = self._fn
        net.memory = "store" if self.disable else "checkpoint" if keep else "invert"
        return net


class ReversibleBlock(InvertibleModuleWrapper):
    """Deprecated: use `InvertibleModuleWrapper` with a coupling."""

    def __init__(
        self,
        Fm: nn.Module,
        Gm: nn.Module | None = None,
        coupling: str = "additive",
        keep_input: bool = False,
        keep_input_inverse: bool = False,
        implementation_fwd: int = -1,
        implementation_bwd: int = -1,
        adapter: Adapter = None,
    ) -> None:
        warnings.warn(
            "ReversibleBlock is deprecated: use InvertibleModuleWrapper",
            DeprecationWarning,
            stacklevel=2,
        )
        fn = create_coupling(
            Fm, Gm, coupling, implementation_fwd, implementation_bwd, adapter
        )
        super().__init__(fn, keep_input, keep_input_inverse)


def create_coupling(
    Fm: nn.Module,
    Gm: nn.Module | None = None,
    coupling: str = "additive",
    implementation_fwd: int = -1,
    implementation_bwd: int = -1,
    adapter: Adapter = None,
) -> AdditiveCoupling | AffineCoupling:
    """Return a coupling.

    Args:
        Fm: The network that changes the first half.
        Gm: The network that changes the second half; by default a copy.
        coupling: `"additive"` or `"affine"`.
        implementation_fwd: -1; 0 and 1 do the same, and are deprecated.
        implementation_bwd: The same for the inverse.
        adapter: A class that wraps both networks, for `"affine"`.

    Raises:
        NotImplementedError: If the kind of coupling is unknown.
    """
    implementations = implementation_fwd, implementation_bwd
    if coupling == "additive":
        return AdditiveCoupling(Fm, Gm, *implementations)
    if coupling == "affine":
        return AffineCoupling(Fm, Gm, adapter, *implementations)
    raise NotImplementedError(
        f"coupling is {coupling!r}, but must be 'additive' or 'affine'"
    )


def is_invertible_module(
    module_in: nn.Module,
    test_input_shape: Sequence[Any],
    test_input_dtype: torch.dtype = torch.float32,
    atol: float = 1e-6,
    random_seed: int = 42,
) -> bool:
    """Return whether a module is undone by its inverse, and the inverse by the module.

    Other than in memcnn, the global random state does not change.

    Args:
        module_in: The module, or a wrapper of it.
        test_input_shape: The shape of its input, or a sequence of shapes.
        test_input_dtype: The dtype of its input.
        atol: The largest allowed difference.
        random_seed: The seed of the random input.

    Raises:
        ValueError: If the shape is not one.
    """
    module: Any = module_in
    if isinstance(module_in, InvertibleModuleWrapper):
        module = module_in._fn
    if not hasattr(module, "inverse"):
        return False
    generator = torch.Generator().manual_seed(random_seed)
    inputs = tuple(
        torch.rand(shape, generator=generator, dtype=test_input_dtype)
        for shape in _shapes(test_input_shape)
    )
    with torch.no_grad():
        outputs = _tuple(module(*inputs))
        rebuilt = _tuple(module.inverse(*outputs))
        again = _tuple(module(*rebuilt))
    _warn_of_zeros(inputs, outputs)
    if not (_close(rebuilt, inputs, atol) and _close(again, outputs, atol)):
        return False
    _warn_of_shared(inputs, outputs)
    _warn_of_shared(rebuilt, outputs)
    return True


def _shapes(given: Any) -> list[tuple[int, ...]]:
    shapes = given
    if _is_shape(given):
        shapes = [given]
    listed = isinstance(shapes, (tuple, list)) and len(shapes) > 0
    if not listed or not all(map(_is_shape, shapes)):
        raise ValueError(
            f"test_input_shape is {given!r}, but must be a shape or a sequence of them"
        )
    return [tuple(shape) for shape in shapes]


def _is_shape(value: Any) -> bool:
    sequence = isinstance(value, (tuple, list)) and len(value) > 0
    return sequence and all(type(n) is int for n in value)


def _close(values: Sequence[Tensor], others: Sequence[Tensor], atol: float) -> bool:
    pairs = zip(values, others, strict=False)
    return all(torch.allclose(a, b, atol=atol) for a, b in pairs)


def _warn_of_zeros(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    if any(not t.any() for t in (*inputs, *outputs)):
        warnings.warn("an input or output is all zeros: try another seed", stacklevel=3)


def _warn_of_shared(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    tensors = [*inputs, *outputs]
    if len({id(t) for t in tensors}) < len(tensors):
        warnings.warn(
            "an output is the same tensor as an input or another output: return a new "
            "one, or memory is held longer than needed",
            stacklevel=3,
        )


def _state(tensors: tuple[Tensor, ...]) -> Any:
    if not tensors:
        raise TypeError("an InvertibleModuleWrapper was called without a tensor")
    return tensors[0] if len(tensors) == 1 else tensors


def _tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _single(state: Any) -> Any:
    return state[0] if isinstance(state, tuple) and len(state) == 1 else state
