"""The engine: autograd nodes whose saved state is rebuilt by inversion.

`strategies` chooses how a pass is run. `tape` remembers a pass and walks back through
it, `frame` is one call on it, `environment` and `randomness` bring back what that call
read besides its arguments, and `node` is the autograd function that ties a call into
PyTorch's graph. `guard` compares rebuilt states with those of the forward pass, by
their `fingerprint`; `anchors` are the states that are kept exactly. `costs` measures
`copies` of the layers under each strategy, and `budget` chooses among them.
"""

from invtorch.engine.anchors import Anchors, Wanted
from invtorch.engine.automatic import Automatic
from invtorch.engine.budget import Plan, amount
from invtorch.engine.calls import elementary
from invtorch.engine.guard import GUARDS, DriftError
from invtorch.engine.strategies import Strategy, run

__all__ = [
    "GUARDS",
    "Anchors",
    "Automatic",
    "DriftError",
    "Plan",
    "Strategy",
    "Wanted",
    "amount",
    "elementary",
    "run",
]
