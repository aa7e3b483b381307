"""Closed forms: derivatives written by hand, for layers whose formula is known.

A closed form saves the cost that autograd has per operation: the forward pass makes no
graph, and the environment of the call is neither recorded nor restored. Closed forms
are optional: without them, autograd differentiates the same layers, with the same
results.

* `protocol`: the methods of a closed form, and the sums of parameter gradients.
* `members`: what a module is made of; a closed form is only for one that is unaltered.
* `registry`: finds the closed form of a module, or `None` if autograd is to be used.
* `torch_modules`, `weights`: convolutions, linear maps, activations and
  `nn.Sequential`.
* `gated_block`: `GatedResidualBlock`.
* `couplings`: `AdditiveCoupling` and `OrthogonalCoupling`.

The last three import the classes of these modules. Those classes do not import them.
"""

# importing these modules registers their closed forms
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
