"""Copy layers, states and contexts, so that measuring changes no original."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from invtorch._torch import tree_leaves
from invtorch.engine.restore.context import tensors_in

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def copied(module: nn.Module, *arguments: Any) -> tuple[Any, ...]:
    """Copy a module and what it is called with.

    Tensors that have a graph are copied without it, and require a gradient as before.
    The only hooks that are copied are those that compute weights.

    Args:
        module: The module.
        arguments: States and contexts.

    Returns:
        The copies of the module and of each of the others.
    """
    memo: dict[int, Any] = {id(t): _cut(t) for t in tensors_in(arguments)}
    memo |= {id(t): _cut(t) for t in _attached(module)}
    for part in module.modules():
        memo |= {id(hooks): _of_torch(hooks) for hooks in _hooks(part)}
    try:
        return deepcopy((module, *arguments), memo)
    except Exception as error:
        error.add_note(
            f'memory="auto" could not copy {type(module).__name__} or its context to '
            f"measure it: make them copyable by `copy.deepcopy`, or choose another "
            f"memory for the container"
        )
        raise


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _attached(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a module that were computed, which have no deep copy."""
    for part in module.modules():
        for value in tree_leaves(vars(part)):
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value


def _hooks(part: nn.Module) -> list[dict[int, Any]]:
    return [vars(part)[name] for name in HOOKS if name in vars(part)]


def _of_torch(hooks: dict[int, Any]) -> dict[int, Any]:
    """Keep the hooks that the old weight_norm, spectral_norm and prune install.

    The forward pass reads the weights that they compute. All others are the user's and
    may have effects, such as a list that grows.
    """
    kept = {
        key: hook
        for key, hook in hooks.items()
        if type(hook).__module__.startswith("torch.nn.utils.")
    }
    return type(hooks)(kept)
