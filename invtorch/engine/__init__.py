"""The engine: autograd nodes whose saved state is rebuilt by inversion.

`strategies` chooses how a pass is run. `tape` remembers a pass and walks back through
it, `frame` is one call on it, `environment` and `randomness` bring back what that call
read besides its arguments, and `node` is the autograd function that ties a call into
PyTorch's graph.
"""

from invtorch.engine.strategies import run

__all__ = ["run"]
