"""What both couplings of memcnn have in common."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from invtorch import InvertibleModule
from invtorch._checks import check_module

IMPLEMENTATIONS = (-1, 0, 1)


class Coupling(InvertibleModule):
    """Base class of couplings with two networks, each of which changes one half.

    Args:
        Fm: The network that reads the second half and changes the first.
        Gm: The network that reads the first half and changes the second; by default a
            copy of `Fm`.
        adapter: A class that wraps both networks, if given.
        implementation_fwd: -1; 0 and 1 do the same, and are deprecated.
        implementation_bwd: The same for the inverse.
        split_dim: The axis that is split in halves.
    """

    def __init__(
        self,
        Fm: nn.Module,
        Gm: nn.Module | None,
        adapter: Callable[[nn.Module], nn.Module] | None,
        implementation_fwd: int,
        implementation_bwd: int,
        split_dim: int,
    ) -> None:
        super().__init__()
        check_module("Fm", Fm)
        Gm = copy.deepcopy(Fm) if Gm is None else Gm
        check_module("Gm", Gm)
        # in this order, which is that of parameters and of optimizer states
        self.Gm = Gm if adapter is None else adapter(Gm)
        self.Fm = Fm if adapter is None else adapter(Fm)
        self.implementation_fwd = implementation_fwd
        self.implementation_bwd = implementation_bwd
        self.split_dim = split_dim
        if (implementation_fwd, implementation_bwd) != (-1, -1):
            warnings.warn(
                "implementations other than -1 are deprecated: all do the same",
                DeprecationWarning,
                stacklevel=3,
            )

    def halves(self, state: Tensor, implementation: int) -> tuple[Tensor, Tensor]:
        """Split a state.

        Raises:
            NotImplementedError: If the implementation is unknown.
            ValueError: If the state has no such axis, or one entry along it.
        """
        if implementation not in IMPLEMENTATIONS:
            raise NotImplementedError(
                f"implementation is {implementation}, but must be one of "
                f"{IMPLEMENTATIONS}"
            )
        dim = self.split_dim
        if not -state.ndim <= dim < state.ndim or state.shape[dim] < 2:
            raise ValueError(
                f"a state of shape {tuple(state.shape)} has no halves along split_dim "
                f"{dim}: give it at least 2 entries there"
            )
        first, second = state.chunk(2, dim)
        return first.contiguous(), second.contiguous()

    def joined(self, first: Tensor, second: Tensor) -> Tensor:
        """Concatenate both halves."""
        return torch.cat([first, second], self.split_dim)


def of_its_shape(half: Tensor, changed: Tensor) -> Tensor:
    """Return a half that was changed, if it kept its shape.

    Raises:
        ValueError: If it did not: what a network returned was larger.
    """
    if changed.shape != half.shape:
        raise ValueError(
            f"a network makes a half of shape {tuple(half.shape)} one of shape "
            f"{tuple(changed.shape)}: let it return what fits the half"
        )
    return changed
