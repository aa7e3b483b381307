"""Derivatives in closed form, written by hand, of layers whose formula is known.

They save what autograd costs per operation: no graph is made in the forward pass, and
nothing has to be watched or restored around it. They are optional companions: without
them, autograd differentiates the same layers, with the same results.

* `protocol`: what a closed form can do, and where gradients of parameters are summed.
* `registry`: from a module to its closed form, or to `None`: then autograd does it.
* `torch_modules`, `weights`: PyTorch's convolutions, linear maps, activations, chains.
* `gated_block`: `GatedResidualBlock`.
* `couplings`: `AdditiveCoupling` and `OrthogonalCoupling`.

The last three import the classes that they accompany, and no class imports them.
"""

# to import them registers them
from invtorch.closed_form import couplings, gated_block, torch_modules
from invtorch.closed_form.protocol import Gradients, Shift, ShiftPullBack
from invtorch.closed_form.registry import closed_form, without_closed_forms

__all__ = [
    "Gradients",
    "Shift",
    "ShiftPullBack",
    "closed_form",
    "couplings",
    "gated_block",
    "torch_modules",
    "without_closed_forms",
]
