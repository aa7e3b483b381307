"""Copy layers, states and contexts, so that a measurement does not change them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from invtorch._torch import tree_leaves
from invtorch.engine.restore.context import tensors_in

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def copied(module: nn.Module, *arguments: Any) -> tuple[Any, ...]:
    """Copy a module and its arguments.

    Tensors that have a graph are copied without it, and `requires_grad` is kept. The
    only hooks that are copied are those that compute weights.

    Args:
        module: The module.
        arguments: States and contexts.

    Returns:
        The copies of the module and of each argument.
    """
    memo: dict[int, Any] = {id(t): _detached_copy(t) for t in tensors_in(arguments)}
    memo |= {id(t): _detached_copy(t) for t in _non_leaf_tensors(module)}
    for part in module.modules():
        memo |= {id(hooks): _weight_hooks(hooks) for hooks in _hooks_of(part)}
    try:
        return deepcopy((module, *arguments), memo)
    except Exception as error:
        error.add_note(
            f'memory="auto" could not copy {type(module).__name__} or its context to '
            f"measure it: make them copyable by `copy.deepcopy`, or choose another "
            f"memory for the container"
        )
        raise


def _detached_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _non_leaf_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the non-leaf tensors of a module, which `deepcopy` does not support."""
    for part in module.modules():
        for value in tree_leaves(vars(part)):
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value


def _hooks_of(part: nn.Module) -> list[dict[int, Any]]:
    return [vars(part)[name] for name in HOOKS if name in vars(part)]


def _weight_hooks(hooks: dict[int, Any]) -> dict[int, Any]:
    """Return the hooks that the old weight_norm, spectral_norm and prune install.

    The forward pass reads the weights that they compute. All other hooks are the
    user's and may have side effects, such as a list that grows.
    """
    kept = {
        key: hook
        for key, hook in hooks.items()
        if type(hook).__module__.startswith("torch.nn.utils.")
    }
    return type(hooks)(kept)
